"""Make the reference outputs of Gemma 3 270M that tests compare the engine with, by transformers.

    python make_gemma_references.py --gguf gemma-3-270m-q4_k_m.gguf --out tests/references

Needs torch, transformers and gguf, and nothing of fastgen_jax: the reading of the GGUF file below
is independent of the engine's. Writes gemma3_greedy.json, greedy continuations in float32, and
gemma3_tokenizer.json, the token ids of odd texts. With ``--export DIR`` instead of ``--out`` it
writes a Hugging Face directory with the GGUF's weights.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from make_model_references import (
    BARE_PROMPTS,
    CHAT_MESSAGES,
    NUM_TOKENS,
    greedy,
    tokenizer_of,
    versions,
    write_json,
)
from make_tokenizer_references import TEXTS
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

# Every sixth layer sees all keys, with the larger rotary base.
PATTERN = 6
LOCAL_THETA = 10000.0


def main() -> None:
    """Make what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="directory of the reference files")
    parser.add_argument("--export", type=Path, help="write a Hugging Face directory here")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    model = gemma_from_gguf(GGUFReader(args.gguf))
    if args.out is not None:
        source = {
            "file": args.gguf.name,
            "sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
        }
        facts = {"source": source, "versions": versions()}
        tokenizer = tokenizer_of(args.gguf)
        cases = [{"text": text, "ids": tokenizer.encode(text)} for text in TEXTS]
        write_json(args.out / "gemma3_tokenizer.json", facts | {"cases": cases})
        prompts = [continued(model, tokenizer, text) for text in prompt_texts()]
        numbers = {"dtype": "float32", "num_tokens": NUM_TOKENS, "prompts": prompts}
        write_json(args.out / "gemma3_greedy.json", facts | numbers)
    if args.export is not None:  # last, as it changes the model's type
        model.to(getattr(torch, args.dtype)).save_pretrained(args.export)
        tokenizer_of(args.gguf).save_pretrained(args.export)


def gemma_from_gguf(reader: GGUFReader) -> Gemma3ForCausalLM:
    """Return the GGUF's model in float32 with every tensor dequantized."""
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    num_layers = fields["gemma3.block_count"]
    kinds = [
        "full_attention" if (i + 1) % PATTERN == 0 else "sliding_attention"
        for i in range(num_layers)
    ]
    config = Gemma3TextConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["gemma3.embedding_length"],
        intermediate_size=fields["gemma3.feed_forward_length"],
        num_hidden_layers=num_layers,
        num_attention_heads=fields["gemma3.attention.head_count"],
        num_key_value_heads=fields["gemma3.attention.head_count_kv"],
        head_dim=fields["gemma3.attention.key_length"],
        query_pre_attn_scalar=fields["gemma3.attention.key_length"],
        max_position_embeddings=fields["gemma3.context_length"],
        rms_norm_eps=float(str(np.float32(fields["gemma3.attention.layer_norm_rms_epsilon"]))),
        sliding_window=fields["gemma3.attention.sliding_window"],
        layer_types=kinds,
        rope_parameters={
            "full_attention": {
                "rope_type": "default",
                "rope_theta": fields["gemma3.rope.freq_base"],
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_THETA},
        },
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )
    state = {hf_name(name): dequantized(tensor) for name, tensor in tensors.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = Gemma3ForCausalLM(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def hf_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor."""
    layer = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    _, index, part = stem.split(".")
    return f"model.layers.{index}.{layer[part]}.weight"


def dequantized(tensor: Any) -> torch.Tensor:
    """Return a tensor's values in float32; scales of norms less the 1 that the file adds."""
    values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return torch.from_numpy(values - 1 if "norm" in tensor.name else values)


def prompt_texts() -> list[str]:
    """Return texts from 5 to some 900 tokens; the longest exceed the window of 512 keys."""
    long = "\n\n".join(CHAT_MESSAGES)
    story = "Chapter 1. " + " ".join(text for text, _ in BARE_PROMPTS[:2])
    return [*(text for text, _ in BARE_PROMPTS), *CHAT_MESSAGES[4:], story + "\n" + long, long]


def continued(model: Gemma3ForCausalLM, tokenizer: Any, text: str) -> dict[str, Any]:
    """Return a prompt and its greedy continuation, end-of-sequence ids ignored."""
    ids = tokenizer.encode(text)
    found = greedy(model, ids, NUM_TOKENS)
    del found["top_logprobs"]
    print(len(ids), min(found["margins"]), repr(tokenizer.decode(found["token_ids"]))[:100])
    return {"text": text, "prompt_token_ids": ids} | found


if __name__ == "__main__":
    main()
