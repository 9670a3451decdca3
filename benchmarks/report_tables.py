"""Each kind of results file as a markdown table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Content = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column is aligned left, the others right.

    Raises:
        ValueError: a row has more or fewer cells than the head.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells under {len(head)} columns: {row}")
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def spread(values: Content, digits: int = 1, scale: float = 1.0) -> str:
    """A median with the lowest and the highest value."""
    median, low, high = (f"{values[name] * scale:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def offline_throughput(content: Content) -> str:
    """Engines, their tokens per second, and how often ours is faster."""
    ratios: Content = content["times_faster"]
    rows = [
        [
            name,
            spread(one["total_tokens_per_second"]),
            spread(one["output_tokens_per_second"]),
            spread(ratios[name], 2) if name in ratios else "",
        ]
        for name, one in content["summaries"].items()
    ]
    bench: Content = content.get("llama_batched_bench") or {}
    if bench:
        rates = bench["tokens_per_second"]
        total, faster = spread(rates["total"]), spread(bench["times_faster"], 2)
        rows.append(["llama-batched-bench", total, "", faster])
    dtype = content["settings"]["dtype"]
    text = f"{content['num_prompt_tokens']:,} prompt and {content['num_output_tokens']:,} output "
    text += f"tokens, {dtype}, {content['settings']['rounds']} rounds.\n\n"
    head = ["engine", "total tokens/s", "output tokens/s", "ours, times faster"]
    text += table(head, rows)
    own = content["summaries"]["fastgen_jax"]["total_tokens_per_second"]["median"]
    limits: Content = content["matmul_limit"]
    if limits:
        text += "\n\nOf XLA's products alone: " + ", ".join(
            f"{own / limit:.0%} of {name.replace('_', ' ')} ({limit:.0f} tokens/s)"
            for name, limit in limits.items()
        )
        text += "."
    return text


def quantization_quality(content: Content) -> str:
    """Perplexity of each way of keeping the weights, and how far it is from float32's."""
    rows = [
        [
            one["quantization"] or one["dtype"],
            one["order"],
            _activations(one),
            f"{one['perplexity']:.2f}",
            f"{one['relative_change']:+.2%}",
            f"{one['weight_bytes'] / 1e6:.0f}",
        ]
        for one in content["variants"]
    ]
    head = ["weights", "features", "activations", "perplexity", "change", "MB"]
    return table(head, rows)


def peer_perplexity(content: Content) -> str:
    """The engine's perplexity beside transformers'."""
    rows = [
        [
            one["model"],
            one["dtype"],
            f"{one['engine']:.4f}",
            f"{one['transformers']:.4f}",
            f"{one['relative_difference']:+.4%}",
            f"{one['mean_difference']:.2g}",
        ]
        for one in content["models"]
    ]
    head = ["model", "dtype", "engine", "transformers", "difference", "of a token, mean"]
    return table(head, rows)


def _activations(variant: Content) -> str:
    rounded = variant["activation_quantization"] == "int8"
    return f"{variant['dtype']}, rounded to int8" if rounded else variant["dtype"]


def single_stream(content: Content) -> str:
    """Engines, their decode rate, time to the first token and share of the memory's rate."""
    ratios: Content = content["ratios"]
    rows = [
        [
            name,
            spread(one["decode_tokens_per_second"]),
            spread(ratios[name]["decode"], 2) if name in ratios else "",
            spread(one["first_token_seconds"], 3),
            spread(ratios[name]["first_token"], 2) if name in ratios else "",
            f"{one['weight_bytes'] / 1e6:.1f}",
            f"{one['bandwidth_share']:.0%}",
        ]
        for name, one in content["streams"].items()
    ]
    head = ["engine, weights", "decode tokens/s", "ours, times faster", "first token, s"]
    head += ["ours, times sooner", "MB a token", "of memory read"]
    lengths: Content = content["settings"]["lengths"]
    read = content["memory_read"]
    text = (
        f"Decode: {lengths['decode_tokens']} tokens after a prompt of {lengths['decode_prompt']}; "
        f"first token of a prompt of {lengths['first_token_prompt']}. Memory read "
        f"{spread(read['bytes_per_second'], 1, 1e-9)} GB/s ({read['method']}, "
        f"{read['threads']} threads).\n\n{table(head, rows)}"
    )
    bench: Content = content.get("llama_bench") or {}
    if not bench:
        return text
    rows = [
        [
            name,
            spread(one["decode_tokens_per_second"]),
            spread(one["decode_ratio"], 2),
            spread(one["prefill_tokens_per_second"]),
        ]
        for name, one in bench.items()
    ]
    head = ["llama-bench", "decode tokens/s", "ours, times faster", "prefill tokens/s"]
    return f"{text}\n\n{table(head, rows)}"


def memory_read(content: Content) -> str:
    """Gigabytes per second by number of threads."""
    rows = [
        [str(one["threads"]), one["method"], spread(one["bytes_per_second"], 1, 1e-9)]
        for one in content["rates"]
    ]
    return table(["threads", "read by", "GB/s"], rows)


def decode_steps(content: Content) -> str:
    """Milliseconds of a step by rows and context, beside both floors."""
    rows = [
        [
            str(one["rows"]),
            str(one["context"]),
            spread(one["seconds"], 1, 1e3),
            f"{1e3 * one['memory_floor']:.1f}",
            f"{1e3 * one['matmul_floor']:.1f}",
            f"{one['times_floor']:.2f}",
            f"{one['times_in_turn']:.2f}",
        ]
        for one in content["cells"]
    ]
    head = [
        "rows",
        "context",
        "step, ms",
        "memory floor, ms",
        "matmul floor, ms",
        "over the larger",
        "over both in turn",
    ]
    return (
        f"{content['settings']['dtype']}; memory read {content['read_rate'] / 1e9:.1f} GB/s, best "
        f"product {content['flop_rate'] / 1e9:.0f} GFLOP/s.\n\n{table(head, rows)}"
    )


def start_up(content: Content) -> str:
    """Seconds to the first token, and of the imports."""
    first = [
        [f"first token, {kind}", spread(one, 2)]
        for kind, one in content["first_token_seconds"].items()
    ]
    imports = [
        [f"importing {name}", f"{seconds:.2f}"]
        for name, seconds in content["import_seconds"].items()
    ]
    modules = [
        [f"`{one['module']}`", f"{one['own'] / 1e3:.0f}", f"{one['cumulative'] / 1e3:.0f}"]
        for one in content["top_modules"]["fastgen_jax"][:5]
    ]
    times = table(["", "seconds"], first + imports)
    head = ["slowest modules of `import fastgen_jax`", "by itself, ms", "with its imports, ms"]
    return f"{times}\n\n{table(head, modules)}"


def step_gap(content: Content) -> str:
    """The gap between launches, and its share."""
    rows = [
        ["launch, untraced, ms", spread(content["launch_seconds"], 2, 1e3)],
        ["device busy with it, traced, ms", spread(content["traced_busy_seconds"], 2, 1e3)],
        ["gap between launches, ms", spread(content["gap_seconds"], 3, 1e3)],
        ["median gap over median launch", f"{content['gap_share']:.2%}"],
        ["median gap over one step of it", f"{content['gap_share_of_step']:.2%}"],
        ["all gaps over all traced time", f"{content['gap_share_of_traced_time']:.2%}"],
    ]
    settings: Content = content["settings"]
    head = [f"{settings['rows']} rows, {content['steps_per_launch']:.1f} steps a launch", ""]
    return table(head, rows)


def prefix_cache(content: Content) -> str:
    """Prefill seconds with the cache on and off."""
    shared: Content = content["settings"]["shared"]
    rows = [[name, spread(one, 2)] for name, one in content["seconds"].items()]
    rows.append(["times less", spread(content["times_less"], 2)])
    differing = content["num_requests_with_other_tokens"]
    rows.append(["requests with other tokens", str(sum(differing))])
    text = f"{shared['num_requests']} requests share {shared['prefix_length']:,} tokens and have "
    return f"{text}{shared['own_length']} of their own.\n\n{table(['', 'seconds'], rows)}"


def step_profile(content: Content) -> str:
    """Where a step's time goes, a column per step."""
    profiles: Sequence[Content] = content["profiles"]
    names = list(profiles[0]["parts"])
    rows = [
        [name, *[_part(one["parts"][name]["median"], one) for one in profiles]] for name in names
    ]
    rows.append(["remainder", *[_part(one["remainder"], one) for one in profiles]])
    rows.append(["whole step", *[_part(one["whole"]["median"], one) for one in profiles]])
    head = ["part", *[f"{one['name']}, {one['num_tokens']} tokens, ms" for one in profiles]]
    return f"{content['settings']['dtype']}.\n\n{table(head, rows)}"


def host_time(content: Content) -> str:
    """Milliseconds of the host's parts of a step, with each queue length."""
    columns: Content = content["milliseconds"]
    if "median" in next(iter(columns.values())):  # one queue length, unnamed
        columns = {"no queue": columns}
    parts = list(next(iter(columns.values())))
    rows = [
        [part, *[f"{one[part]['median']:.3f} ({one[part]['p99']:.3f})" for one in columns.values()]]
        for part in parts
    ]
    text = f"{content['settings']['rows']} running requests, median and 99th percentile.\n\n"
    return text + table(["ms", *columns], rows)


def model_loading(content: Content) -> str:
    """Seconds and host memory of each way to load a model."""
    rows = [
        [
            f"{one['model']}, {one['format']}, {one['form']}",
            str(one["devices"]),
            spread(one["seconds"], 2),
            f"{one['import_seconds']['median']:.2f}",
            f"{one['weight_bytes'] / 1e6:.0f}",
            spread(one["beside_weights_bytes"], 0, 1e-6),
            f"{one['largest_and_share_bytes'] / 1e6:.0f}",
        ]
        for one in content["summaries"]
    ]
    head = ["model, files, form", "devices", "loading, s", "importing Orbax, s"]
    head += ["weights, MB", "host's peak beside them, MB", "largest tensor and a share, MB"]
    settings = content["settings"]
    return f"{settings['dtype']}, {settings['rounds']} rounds.\n\n{table(head, rows)}"


def _part(seconds: float, profile: Content) -> str:
    return f"{1e3 * seconds:.1f} ({seconds / profile['whole']['median']:.0%})"


RENDERERS: dict[str, Callable[[Content], str]] = {
    "offline_throughput": offline_throughput,
    "single_stream": single_stream,
    "memory_read": memory_read,
    "decode_steps": decode_steps,
    "start_up": start_up,
    "model_loading": model_loading,
    "step_gap": step_gap,
    "host_time": host_time,
    "prefix_cache": prefix_cache,
    "quantization_quality": quantization_quality,
    "peer_perplexity": peer_perplexity,
    "step_profile": step_profile,
}
