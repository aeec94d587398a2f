"""Files of published models' true shapes and types, with random weights: for speed, not for text.

Only numpy and gguf are needed. The weights' types are those that llama.cpp's quantizer chooses for a model
with so many layers (llama-quant.cpp, llama_tensor_get_type_impl).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType, TokenType
from gguf import GGMLQuantizationType as Type
from model_file import Tensor, add_key, write_tensors
from random_blocks import RandomBlocks


@dataclass(frozen=True)
class FullSize:
    """A published model's sizes, in GGUF's words."""

    arch: str
    file_type: LlamaFileType
    pre: str
    """The name of its pre-tokenizer; "" for a SentencePiece vocabulary."""
    n_vocab: int
    n_layer: int
    n_embd: int
    n_ff_exp: int
    n_head: int
    n_head_kv: int
    n_embd_head: int
    n_expert: int
    n_expert_used: int
    n_ctx_train: int
    rope_freq_base: float
    rms_eps: float = 1e-5
    qk_norm: bool = False
    biases: bool = False
    """gpt-oss: biases at all matrices of a block, and attention sinks."""
    ffn_norm: str = "ffn_norm"
    keys: Mapping[str, int | float | str] = field(default_factory=dict)
    """More keys of the architecture, without its name."""


FULL_SIZE = {
    "mixtral-8x7b": FullSize(
        "llama", LlamaFileType.MOSTLY_Q4_K_M, "", 32000, 32, 4096, 14336, 32, 8, 128, 8, 2, 32768, 1e6
    ),
    "qwen3-30b-a3b": FullSize(
        "qwen3moe",
        LlamaFileType.MOSTLY_Q4_K_M,
        "qwen2",
        *(151936, 48, 2048, 768, 32, 4, 128, 128, 8, 40960, 1e6, 1e-6),
        qk_norm=True,
    ),
    "gpt-oss-20b": FullSize(
        "gpt-oss",
        LlamaFileType.MOSTLY_MXFP4_MOE,
        "gpt-4o",
        *(201088, 24, 2880, 2880, 64, 8, 64, 32, 4, 131072, 150000.0),
        biases=True,
        ffn_norm="post_attention_norm",
        keys={
            "attention.sliding_window": 128,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
    ),
}


def weight_type(m: FullSize, name: str, il: int) -> Type:
    """The type of a matrix; `name` without `blk.N.` and `.weight`."""
    if m.file_type == LlamaFileType.MOSTLY_MXFP4_MOE:
        return Type.MXFP4 if name.endswith("_exps") else Type.Q8_0
    if name == "output":
        return Type.Q6_K
    if m.n_expert == 8 and name in ("attn_k", "attn_v"):
        return Type.Q8_0
    if m.n_expert == 8 and name == "attn_output":
        return Type.Q5_K
    eighth = m.n_layer // 8
    more_bits = il < eighth or il >= 7 * m.n_layer // 8 or (il - eighth) % 3 == 2
    return Type.Q6_K if more_bits and name in ("attn_v", "ffn_down_exps") else Type.Q4_K


def tensors(m: FullSize, seed: int) -> Iterator[Tensor]:
    """All tensors. A matrix of size gain / sqrt(inputs) keeps activations sane, as in random_model.py."""
    blocks, rng = RandomBlocks(seed), np.random.default_rng(seed)
    n_embd_q, n_embd_gqa = m.n_head * m.n_embd_head, m.n_head_kv * m.n_embd_head

    def matrix(name: str, il: int, shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
        prefix, qtype = f"blk.{il}." if il >= 0 else "", weight_type(m, name, il)
        make = partial(blocks.tensor, qtype, int(np.prod(shape)), gain / shape[-1] ** 0.5)
        return Tensor(f"{prefix}{name}.weight", shape, qtype, make)

    def floats(name: str, shape: tuple[int, ...], mean: float, std: float) -> Tensor:
        def make() -> np.ndarray:
            return mean + np.float32(std) * rng.standard_normal(shape, np.float32)

        return Tensor(name, shape, Type.F32, make)

    yield matrix("token_embd", -1, (m.n_vocab, m.n_embd), m.n_embd**0.5)
    for il in range(m.n_layer):
        blk = f"blk.{il}."
        yield floats(blk + "attn_norm.weight", (m.n_embd,), 1, 0.1)
        yield matrix("attn_q", il, (n_embd_q, m.n_embd), 1.5)
        yield matrix("attn_k", il, (n_embd_gqa, m.n_embd), 1.5)
        yield matrix("attn_v", il, (n_embd_gqa, m.n_embd))
        yield matrix("attn_output", il, (m.n_embd, n_embd_q))
        yield floats(f"{blk}{m.ffn_norm}.weight", (m.n_embd,), 1, 0.1)
        yield floats(blk + "ffn_gate_inp.weight", (m.n_expert, m.n_embd), 0, 2 / m.n_embd**0.5)
        yield matrix("ffn_gate_exps", il, (m.n_expert, m.n_ff_exp, m.n_embd))
        yield matrix("ffn_up_exps", il, (m.n_expert, m.n_ff_exp, m.n_embd))
        yield matrix("ffn_down_exps", il, (m.n_expert, m.n_embd, m.n_ff_exp))
        if m.qk_norm:
            yield floats(blk + "attn_q_norm.weight", (m.n_embd_head,), 1, 0.1)
            yield floats(blk + "attn_k_norm.weight", (m.n_embd_head,), 1, 0.1)
        if m.biases:
            for name, n in (("q", n_embd_q), ("k", n_embd_gqa), ("v", n_embd_gqa), ("output", m.n_embd)):
                yield floats(f"{blk}attn_{name}.bias", (n,), 0, 0.1)
            yield floats(blk + "attn_sinks.weight", (m.n_head,), 0, 1)
            yield floats(blk + "ffn_gate_inp.bias", (m.n_expert,), 0, 0.1)
            for name, n in (("gate", m.n_ff_exp), ("up", m.n_ff_exp), ("down", m.n_embd)):
                yield floats(f"{blk}ffn_{name}_exps.bias", (m.n_expert, n), 0, 0.1)
    yield floats("output_norm.weight", (m.n_embd,), 1, 0.1)
    yield matrix("output", -1, (m.n_vocab, m.n_embd), 3)


def add_vocabulary(writer: GGUFWriter, pre: str, n_vocab: int) -> None:
    """As many tokens as the model has. The bytes work, so any text can be given; the others are names."""
    if pre:
        # The project has this alphabet too, but it may not be installed where the file is made.
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
        tokens, types = letters, [TokenType.NORMAL] * 256
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        tokens += [*(f"t{i}" for i in range(256, n_vocab - 2)), "th", "<|endoftext|>"]
        types += [TokenType.NORMAL] * (n_vocab - 257) + [TokenType.CONTROL]
        writer.add_token_merges(["t h"])
        bos = eos = n_vocab - 1
    else:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
        tokens += ["▁", *(f"▁t{i}" for i in range(260, n_vocab))]
        types += [TokenType.NORMAL] * (n_vocab - 259)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(n_vocab - 259)])
        writer.add_unk_token_id(0)
        bos, eos = 1, 2
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(not pre)


def add_keys(writer: GGUFWriter, m: FullSize, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(m.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(m.n_layer)
    writer.add_context_length(m.n_ctx_train)
    writer.add_embedding_length(m.n_embd)
    writer.add_feed_forward_length(m.n_ff_exp)
    writer.add_expert_feed_forward_length(m.n_ff_exp)
    writer.add_head_count(m.n_head)
    writer.add_head_count_kv(m.n_head_kv)
    writer.add_key_length(m.n_embd_head)
    writer.add_value_length(m.n_embd_head)
    writer.add_rope_dimension_count(m.n_embd_head)
    writer.add_rope_freq_base(m.rope_freq_base)
    writer.add_layer_norm_rms_eps(m.rms_eps)
    writer.add_expert_count(m.n_expert)
    writer.add_expert_used_count(m.n_expert_used)
    writer.add_vocab_size(m.n_vocab)
    for key, value in m.keys.items():
        add_key(writer, f"{m.arch}.{key}", value)


def make(name: str, dst: Path, n_layer: int | None, seed: int) -> None:
    """Write the model, or one with fewer layers, and say how fast that went."""
    start = time.perf_counter()
    m = FULL_SIZE[name] if n_layer is None else replace(FULL_SIZE[name], n_layer=n_layer)
    if m.n_layer < 1:
        raise SystemExit(f"--layers {m.n_layer}: a model has at least one layer")
    writer = GGUFWriter(dst, m.arch)
    add_keys(writer, m, f"{name}, {m.n_layer} layers, random weights")
    add_vocabulary(writer, m.pre, m.n_vocab)
    write_tensors(writer, list(tensors(m, seed)))
    nbytes, seconds = dst.stat().st_size, time.perf_counter() - start
    print(f"{dst} ({nbytes / 1e9:.2f} GB in {seconds:.1f} s, {nbytes / seconds / 1e6:.0f} MB/s)")
