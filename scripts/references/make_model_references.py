"""Make the reference outputs that tests compare the engine's models with, by transformers.

Needs torch, transformers, gguf and safetensors, and nothing of fastgen_jax: the reading of the
GGUF file below is independent of the engine's. Three parts, each done when its option is given:

    --gguf FILE --export DIR            a Hugging Face directory with the GGUF's weights
    --gguf FILE --out tests/references  smollm2_greedy.json, greedy continuations of the GGUF
    --tiny --out tests/references       tiny_llama/ and tiny_llama_greedy.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NUM_TOKENS = 48
TINY_NUM_TOKENS = 24
TOP = 5
# The seed of 0 to 39 whose continuations are the clearest choices.
TINY_SEED = 3

# Lengths of the prompts made of bare tokens: shorter than what the chat template permits.
BARE_PROMPTS = (
    ("The capital of France is", 5),
    ("Once upon a time, in a village by the sea, there lived an old fisherman who", 12),
    ("def fibonacci(n):\n    if n < 2:\n        return n\n    return fib", 19),
)

CHAT_MESSAGES = (
    "Hi!",
    "What is the boiling point of water at sea level, in Celsius?",
    "Write a haiku about autumn rain on a tin roof.",
    "Translate into French: 'Where is the nearest train station, and when does it close?'",
    (
        "I have 17 apples, give away 5, then buy twice as many as I have left. How many "
        "apples do I have now? Explain each part of the calculation."
    ),
    (
        "Explain to a ten-year-old why the sky is blue during the day and red at sunset. Use "
        "simple words, give one everyday comparison, and end with a question that makes them "
        "curious to find out more about light and colours."
    ),
    (
        "Here is a Python function:\n\n```python\ndef mean(values):\n    total = 0\n    for "
        "v in values:\n        total += v\n    return total / len(values)\n```\n\nIt crashes "
        "on an empty list. Rewrite it so that it raises a ValueError with a clear message "
        "instead, add type annotations and a docstring, and tell me which test cases you "
        "would write for it."
    ),
    (
        "Please summarize the following notes in three bullet points.\n\nThe town council "
        "met on Tuesday to discuss the old bridge over the river. Engineers reported that "
        "two of its four piers have cracks that grew by several millimetres since last year. "
        "Repairing them would cost about 1.2 million and take eight months, during which "
        "lorries would have to drive around by the northern road. Building a new bridge "
        "would cost 4.5 million but would also carry a cycle path. Shop owners near the "
        "market fear losing customers during any closure, while the school asked for a safer "
        "way for children who walk across every morning. The council will vote next month, "
        "after a public meeting."
    ),
    (
        "You are helping me plan a five-day trip to northern Italy in early May for two "
        "adults and a child of six. We arrive in Milan on a Wednesday around noon and fly "
        "back from Venice on Sunday evening. We like small museums, boats, good but simple "
        "food, and playgrounds; we do not like long queues, very early mornings, or driving "
        "in cities. We can spend about 180 euros a night for a family room and 90 euros a "
        "day for meals. The child gets tired after two hours of walking and loves trains. We "
        "would like to see Lake Garda for at least one full day, and one of us has never "
        "been to Verona and wants to see the Roman arena there, even if only from outside. "
        "Please propose a plan day by day, with the train connections to look up, one indoor "
        "alternative for rain on every day, and a short packing list. Mention anything that "
        "has to be reserved in advance, say which parts can be dropped if we are late, and "
        "keep the whole answer under four hundred words. We have already booked the flights "
        "and the first two nights in Milan, close to the central station, so please start the "
        "plan there, keep the luggage in mind on travel days, and name one bakery or ice "
        "cream shop worth a detour in each town."
    ),
)


def main() -> None:
    """Make what the arguments ask for."""
    args = parse_args()
    if args.gguf is not None and args.export is not None:
        export(args.gguf, args.export, getattr(torch, args.dtype))
    if args.gguf is not None and args.out is not None:
        content = gguf_references(args.gguf)
        write_json(args.out / "smollm2_greedy.json", content)
    if args.tiny and args.out is not None:
        make_tiny(args.out)


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gguf", type=Path, help="a GGUF file of the llama architecture")
    parser.add_argument("--out", type=Path, help="directory of the reference files")
    parser.add_argument("--export", type=Path, help="write a Hugging Face directory here")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tiny", action="store_true", help="make the tiny random Llama too")
    return parser.parse_args()


def export(gguf: Path, directory: Path, dtype: torch.dtype) -> None:
    """Write the GGUF's model and tokenizer as a Hugging Face directory, weights in ``dtype``."""
    reader = GGUFReader(gguf)
    llama_from_gguf(reader).to(dtype).save_pretrained(directory)
    tokenizer_of(gguf).save_pretrained(directory)
    print(f"{directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}")


def llama_from_gguf(reader: GGUFReader) -> LlamaForCausalLM:
    """Return the GGUF's model in float32 with every tensor dequantized."""
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )
    state = {hf_name(name): dequantized(tensor, config) for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def hf_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor."""
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    layer = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    _, index, part = stem.split(".")
    return f"model.layers.{index}.{layer[part]}.weight"


def dequantized(tensor: Any, config: LlamaConfig) -> torch.Tensor:
    """Return a GGUF tensor's values in float32, q and k in the order that rotates halves."""
    values = dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = tensor.name.split(".")[-2]
    if part in heads:
        # Stored as [head, pair, side, in]; rotating halves wants [head, side, pair, in].
        paired = values.reshape(heads[part], -1, 2, values.shape[-1])
        values = paired.transpose(0, 2, 1, 3).reshape(values.shape)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def tokenizer_of(gguf: Path) -> PreTrainedTokenizerFast:
    """Return the GGUF's tokenizer with its chat template, converted by transformers."""
    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


def gguf_references(gguf: Path) -> dict[str, Any]:
    """Return greedy continuations of all prompts, in float32, end-of-sequence ids ignored."""
    model = llama_from_gguf(GGUFReader(gguf))
    tokenizer = tokenizer_of(gguf)
    prompts = [
        {"text": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)[:n]}
        for text, n in BARE_PROMPTS
    ] + [
        {"message": message, "prompt_token_ids": chat_ids(tokenizer, message)}
        for message in CHAT_MESSAGES
    ]
    for prompt in prompts:
        prompt |= greedy(model, prompt["prompt_token_ids"], NUM_TOKENS)
        print(len(prompt["prompt_token_ids"]), repr(tokenizer.decode(prompt["token_ids"]))[:100])
    return {
        "source": {"file": gguf.name, "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest()},
        "versions": versions(),
        "dtype": "float32",
        "num_tokens": NUM_TOKENS,
        "prompts": prompts,
    }


def chat_ids(tokenizer: PreTrainedTokenizerFast, message: str) -> list[int]:
    """Return the token ids of one user message in the chat template, ready for the answer."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer.encode(text, add_special_tokens=False)


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompt: list[int], count: int) -> dict[str, list[Any]]:
    """Return ``count`` most likely tokens one after another, and how clear each choice was.

    ``margins`` are differences between the two largest logits, ``logprobs`` natural logarithms
    of the chosen tokens' probabilities, and ``top_logprobs`` the five most likely tokens as
    [token id, log-probability], most likely first; all are rounded to 1e-6.
    """
    result: dict[str, list[Any]] = {
        "token_ids": [],
        "margins": [],
        "logprobs": [],
        "top_logprobs": [],
    }
    cache = None
    ids = torch.tensor([prompt])
    for _ in range(count):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[0, -1].double()
        logprobs = torch.log_softmax(logits, dim=-1)
        best = torch.topk(logits, TOP)
        token = int(best.indices[0])
        result["token_ids"].append(token)
        result["margins"].append(round(float(best.values[0] - best.values[1]), 6))
        result["logprobs"].append(round(float(logprobs[token]), 6))
        result["top_logprobs"].append(
            [[int(i), round(float(logprobs[i]), 6)] for i in best.indices]
        )
        ids = torch.tensor([[token]])
    return result


def make_tiny(out: Path) -> None:
    """Write tiny_llama/, a random Llama, and tiny_llama_greedy.json, its continuations."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=257,
    )
    torch.manual_seed(TINY_SEED)
    directory = out / "tiny_llama"
    LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    (directory / "model.safetensors").chmod(0o644)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for length in (5, 17, 40, 97):
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        first = [round(float(value), 6) for value in torch.log_softmax(logits.double(), dim=-1)]
        prompt = {"prompt_token_ids": ids, "first_token_logprobs": first}
        continuation = greedy(model, ids, TINY_NUM_TOKENS)
        del continuation["top_logprobs"]
        prompts.append(prompt | continuation)
        print(length, "smallest margin", min(prompts[-1]["margins"]))
    content = {
        "versions": versions(),
        "dtype": "float32",
        "num_tokens": TINY_NUM_TOKENS,
        "prompts": prompts,
    }
    write_json(out / "tiny_llama_greedy.json", content)


def versions() -> dict[str, str]:
    """Return the versions of the packages that the references depend on."""
    return {name: version(name) for name in ("torch", "transformers", "gguf")}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write compact JSON, replacing the file in one go."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    print(f"{path}: {len(text)} characters")


if __name__ == "__main__":
    main()
