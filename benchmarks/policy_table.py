"""The measured comparison of policies as markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report_tables import Content, spread, table
from fastgen_jax.bench.spread import Spread

_COLUMNS = {
    "requests/s": ("rate", 2, 1.0),
    "effective": ("effective", 2, 1.0),
    "P95 gap, ms": ("gap_p95", 0, 1e3),
    "P99 gap, ms": ("gap_p99", 0, 1e3),
    "mean latency, s": ("latency_mean", 2, 1.0),
    "P95 to first token, s": ("ttft_p95", 2, 1.0),
}


def policy_comparison(content: Content) -> str:
    """Each setup: the curves, and SplitFuse beside the others."""
    settings = content["settings"]
    parts = [
        (
            f"{settings['rounds']} rounds, {settings['requests']} requests a run and at least 3 "
            f"for each client, {settings['dtype']}. Medians over the rounds (lowest to highest)."
        )
    ]
    for setup in settings["setups"]:
        name, level = f"{setup['prompt_tokens']}/{setup['output_tokens']}", setup["level"]
        runs = [run for run in content["runs"] if run["setup"] == name]
        parts += [
            (
                f"**{name}**: at least {level['token_rate']:g} tokens per second, the first after "
                f"prompt/{level['prompt_rate']:g} seconds; {setup['token_budget']} tokens a step "
                "for policies that cut prompts."
            ),
            _curves(runs, settings["policies"]),
            _ratios(content["ratios"][name], settings["policies"]),
        ]
    parts.append(_errors(content["prediction_errors"]))
    return "\n\n".join(parts)


def _curves(runs: Sequence[Content], names: Mapping[str, str]) -> str:
    rows = [
        [names[policy], str(clients), *(_cell(same, *how) for how in _COLUMNS.values())]
        for clients in sorted({run["clients"] for run in runs})
        for policy in names
        for same in [[r for r in runs if r["policy"] == policy and r["clients"] == clients]]
    ]
    return table(["policy", "clients", *_COLUMNS], rows)


def _cell(runs: Sequence[Content], name: str, digits: int, scale: float) -> str:
    found = Spread.of([run["measured"][name] for run in runs])
    values = {"median": found.median, "low": found.low, "high": found.high}
    return spread(values, digits, scale)


def _ratios(ratios: Content, names: Mapping[str, str]) -> str:
    rows = [
        [
            names[policy],
            clients,
            *(_ratio(named[key]) for key in ("effective", "gap_p95", "latency_mean", "rate")),
        ]
        for policy, found in ratios.items()
        for clients, named in found["by_clients"].items()
    ]
    rows += [
        [names[policy], "best each", _ratio(found["peak_effective"]), "", "", ""]
        for policy, found in ratios.items()
    ]
    head = ["SplitFuse is better than", "clients", "effective", "P95 gap", "latency", "requests/s"]
    return table(head, rows)


def _ratio(found: Mapping[str, Any]) -> str:
    if found["median"] is None:
        return "∞"
    more = f", ∞ in {found['num_infinite']}" if found["num_infinite"] else ""
    return spread(found, 2) + more


def _errors(errors: Content) -> str:
    what = {
        "rate": "requests/s",
        "latency_p95": "P95 latency",
        "gap_p95": "P95 between tokens",
        "ttft_p95": "P95 to first token",
    }
    rows = [
        [
            what[name],
            f"{error['median']:+.1%}",
            f"{error['median_size']:.1%}",
            f"{error['largest_size']:.1%}",
            f"{error['share_within']:.0%} within {error['limit']:.0%}",
        ]
        for name, error in errors.items()
    ]
    head = ["simulated beside measured", "median", "median size", "largest", "runs"]
    return table(head, rows)
