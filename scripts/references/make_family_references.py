"""Make the reference outputs of every model family: tiny random checkpoints, by transformers.

Needs torch, transformers and safetensors, and nothing of fastgen_jax. Each case of
family_cases_*.py becomes a directory with config.json, legacy_config.json (the same in the form of
transformers 4), model.safetensors, generation_config.json where it matters and greedy.json:

    --out tests/references/families [CASE ...]            make the named cases, or all
    --out tests/references/families --check [CASE ...]    compute committed cases again and compare
    --search [CASE ...]                                   print the first seed that is clear
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import family_cases_llama
import family_cases_other
import family_cases_phi
import family_cases_qwen
import torch
from family_case import Case
from family_checks import (
    UnfeltError,
    built,
    distance,
    fields_felt,
    implementations,
    router_gap,
    tensors_felt,
)
from family_legacy_config import legacy_config
from family_readme import readme
from family_weights import randomize
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging

CASES = (
    *family_cases_llama.CASES,
    *family_cases_qwen.CASES,
    *family_cases_phi.CASES,
    *family_cases_other.CASES,
)

NUM_TOKENS = 24
LENGTHS = (5, 17, 40, 97)
PROMPT_SEED = 1
# The smallest difference of the two largest logits, and of routing logits at the choice.
MARGIN = 2e-3
ROUTER_GAP = 3e-4
# Logits with and without the cache are equal up to rounding.
SAME = 1e-4
ROUNDING = 2e-5
# Of the 24 tokens after the longest prompt: fewer distinct ones would hide differences.
DISTINCT = 6
NUM_SEEDS = 300


def main() -> None:
    """Do what the arguments ask for."""
    args = parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if not args.cases or case.name in args.cases]
    if unknown := set(args.cases) - {case.name for case in CASES}:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}")
    for case in chosen:
        if args.search:
            print(case.name, first_clear_seed(case), flush=True)
        elif args.check:
            check(case, args.out / case.name)
        else:
            make(case, args.out / case.name)
    if not args.search and not args.check:
        (args.out / "README.md").write_text(readme(args.out), encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all cases if none is named")
    parser.add_argument("--out", type=Path, help="directory of the cases' directories")
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    parser.add_argument("--search", action="store_true", help="print clear seeds, write nothing")
    args = parser.parse_args()
    if args.out is None and not args.search:
        parser.error("--out is needed, except with --search")
    return args


def first_clear_seed(case: Case) -> int:
    """Return the smallest seed whose continuations are clear choices and feel all changes."""
    for seed in range(NUM_SEEDS):
        model = weighted(case, seed)
        if unclear(case, model) is None:
            with contextlib.suppress(UnfeltError):
                fields_felt(case, model, first_logprobs)
                return seed
    raise SystemExit(f"{case.name}: no clear seed below {NUM_SEEDS}")


def unclear(case: Case, model: PreTrainedModel) -> str | None:
    """Return what is too close in the case's continuations, if anything."""
    longest = greedy(copy.deepcopy(model), prompts()[-1], use_cache=True)
    if len(set(longest["token_ids"])) < DISTINCT:
        return "few distinct tokens"
    if (margin := min(longest["margins"])) <= MARGIN:
        return f"margin {margin:.1e}"
    for ids in prompts():
        ways = results(case, model, ids).values()
        if (margin := min(min(way["margins"]) for way in ways)) <= MARGIN:
            return f"margin {margin:.1e}"
    if (error := rounding(model)) >= ROUNDING:
        return f"rounding {error:.1e}"
    gap = router_gap(model, lambda: [results(case, model, ids) for ids in prompts()])
    return None if gap is None or gap > ROUTER_GAP else f"router gap {gap:.1e}"


def rounding(model: PreTrainedModel) -> float:
    """Return how far float64 moves the first log-probabilities: what float32 leaves open."""
    return distance(first_logprobs(model), first_logprobs(copy.deepcopy(model).double()))


def weighted(case: Case, seed: int) -> PreTrainedModel:
    """Return the case's model with random weights."""
    model = built(case)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    randomize(model, seed, tied=tied, unit_offset=case.model_type.startswith("gemma"))
    model.tie_weights()
    return model


def prompts() -> list[list[int]]:
    """Return the token ids of all prompts, below 96."""
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    return [torch.randint(0, 96, (n,), generator=generator).tolist() for n in LENGTHS]


def make(case: Case, directory: Path) -> None:
    """Write one case's directory from its seed."""
    model = weighted(case, case.seed)
    if (reason := unclear(case, model)) is not None:
        raise SystemExit(f"{case.name}: seed {case.seed}: {reason}; find another with --search")
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if case.generation:
        GenerationConfig(**case.generation).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(legacy_config(config), indent=2, sort_keys=True) + "\n"
    (directory / "legacy_config.json").write_text(text, encoding="utf-8")
    stored = loaded(case, directory)
    content = reference(case, stored) | {"felt": rounded(fields_felt(case, stored, first_logprobs))}
    content["weakest_tensor"] = weakest(tensors_felt(case, stored, first_logprobs))
    write_json(directory / "greedy.json", content)
    check_legacy(case, directory)
    size = (directory / "model.safetensors").stat().st_size
    print(
        f"{case.name}: seed {case.seed}, margin {content['smallest_margin']:.4f}, router gap "
        f"{content['smallest_router_gap']}, {len(case.felt)} changes felt, least by "
        f"{min(content['felt'].values(), default=0):.4f}; {size / 1e3:.0f} kB",
        flush=True,
    )


def loaded(case: Case, directory: Path) -> PreTrainedModel:
    """Return the stored model in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, **implementations(case)
    )
    return model.eval()


def reference(case: Case, model: PreTrainedModel) -> dict[str, Any]:
    """Return what greedy.json says of the case, the sensitivity aside."""
    entries = []
    disagree = False
    for ids in prompts():
        ways = results(case, model, ids)
        main_way = ways.pop("generate")
        if "frozen_at_prompt" in ways:
            # The same as of generate, which chooses frequencies by the prompt as well.
            del ways["frozen_at_prompt"]["first_token_logprobs"]
        without_cache = ways["without_cache"]
        if agree(main_way, without_cache):
            del ways["without_cache"]
        else:
            disagree = True
        entry = {"prompt_token_ids": ids} | main_way
        if case.generation:
            entry["stopped_token_ids"] = stopped(case, main_way["token_ids"])
        entries.append(entry | ways)
    if disagree != case.cache_matters:
        raise SystemExit(f"{case.name}: cache_matters is {case.cache_matters}, not {disagree}")
    for entry in entries:
        for way in (entry, *(value for value in entry.values() if isinstance(value, dict))):
            way.pop("logits", None)
    gap = router_gap(model, lambda: [results(case, model, ids) for ids in prompts()])
    return {
        "case": case.name,
        "model_type": case.model_type,
        "covers": case.covers,
        "note": case.note,
        "seed": case.seed,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "dtype": "float32",
        "attention": "eager",
        "num_tokens": NUM_TOKENS,
        "cache_matters": case.cache_matters,
        "rounding": float(f"{rounding(model):.1e}"),
        "smallest_margin": min(min(entry["margins"]) for entry in entries),
        "smallest_router_gap": None if gap is None else round(gap, 6),
        "prompts": entries,
    }


def results(case: Case, model: PreTrainedModel, ids: list[int]) -> dict[str, dict[str, Any]]:
    """Return the greedy continuation of one prompt in all ways that the case needs."""
    ways = {
        "generate": greedy(copy.deepcopy(model), ids, use_cache=True),
        "without_cache": greedy(copy.deepcopy(model), ids, use_cache=False),
    }
    if case.fixed_rope:
        for name, length in (("prompt", len(ids)), ("total", len(ids) + NUM_TOKENS)):
            fixed = with_fixed_rope(copy.deepcopy(model), length)
            ways[f"frozen_at_{name}"] = greedy(fixed, ids, use_cache=True)
    return ways


@torch.inference_mode()
def with_fixed_rope(model: PreTrainedModel, length: int) -> PreTrainedModel:
    """Return the model with the rotary frequencies of this length, for all lengths."""
    model(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=False)
    rotary = model.base_model.rotary_emb
    rotary.rope_type = "default"
    return model


@torch.inference_mode()
def greedy(model: PreTrainedModel, ids: list[int], *, use_cache: bool) -> dict[str, Any]:
    """Return what generate gives for one prompt, end-of-sequence ids ignored."""
    model.generation_config = GenerationConfig()
    inputs = torch.tensor([ids])
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.cat(output.logits).double()
    best = logits.topk(2, dim=-1)
    tokens = output.sequences[0, len(ids) :].tolist()
    if len(tokens) != NUM_TOKENS or tokens != best.indices[:, 0].tolist():
        raise SystemExit(f"generate did not give {NUM_TOKENS} most likely tokens")
    first = torch.log_softmax(logits[0], dim=-1)
    return {
        "first_token_logprobs": [round(float(value), 5) for value in first],
        "token_ids": tokens,
        "margins": [round(float(a - b), 5) for a, b in best.values],
        "logits": logits,
    }


def agree(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two ways give the same tokens and, up to rounding, the same logits."""
    same = first["token_ids"] == second["token_ids"]
    return same and distance(first["logits"], second["logits"]) < SAME


def stopped(case: Case, tokens: list[int]) -> list[int]:
    """Return the tokens up to the first that generation_config.json names as an end."""
    ends = set(case.generation["eos_token_id"])
    last = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: last + 1]


@torch.inference_mode()
def first_logprobs(model: PreTrainedModel) -> torch.Tensor:
    """Return the log-probabilities after each prompt, [prompt, vocabulary]."""
    rows = []
    for ids in prompts():
        logits = copy.deepcopy(model)(input_ids=torch.tensor([ids]), use_cache=False).logits
        rows.append(torch.log_softmax(logits[0, -1].double(), dim=-1))
    return torch.stack(rows)


def check_legacy(case: Case, directory: Path) -> None:
    """Check that the config in the form of transformers 4 means the same."""
    fields = json.loads((directory / "legacy_config.json").read_text(encoding="utf-8"))
    fields.pop("model_type")
    config = AutoConfig.for_model(case.model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, **implementations(case))
    stored = loaded(case, directory)
    model.load_state_dict(stored.state_dict())
    model.float().eval()
    if distance(first_logprobs(model), first_logprobs(stored)) != 0:
        raise SystemExit(f"{case.name}: legacy_config.json means something else")


def check(case: Case, directory: Path) -> None:
    """Compute a stored case again and compare it with its greedy.json."""
    content = json.loads((directory / "greedy.json").read_text(encoding="utf-8"))
    again = json.loads(json.dumps(reference(case, loaded(case, directory))))
    worst = 0.0
    for old, new in zip(content["prompts"], again["prompts"], strict=True):
        for way in [old, *(value for value in old.values() if isinstance(value, dict))]:
            name = next((key for key, value in old.items() if value is way), None)
            other = new if name is None else new[name]
            if way["token_ids"] != other["token_ids"]:
                raise SystemExit(f"{case.name}: other tokens")
            for field in ("first_token_logprobs", "margins"):
                pairs = zip(way.get(field, ()), other.get(field, ()), strict=True)
                worst = max([worst, *(abs(a - b) for a, b in pairs)])
    if worst > SAME:
        raise SystemExit(f"{case.name}: numbers differ by {worst:.1e}")
    check_legacy(case, directory)
    print(f"{case.name}: same tokens, numbers within {worst:.1e}", flush=True)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Return values with four decimals."""
    return {name: round(value, 4) for name, value in values.items()}


def weakest(felt: dict[str, float]) -> dict[str, float]:
    """Return the kind of tensor that matters least, those without influence aside."""
    name = min((name for name in felt if felt[name] > 0.001), key=lambda name: felt[name])
    return rounded({name: felt[name]})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write compact JSON, replacing the file in one go."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


if __name__ == "__main__":
    main()
