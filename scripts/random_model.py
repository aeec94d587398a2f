"""Mixtral's architecture with random weights and a real vocabulary, quantized by llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, TokenType
from model_file import Tensor, copy_keys, package_file, smollm2_file, write_tensors

F32, F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
N_SPM_BASE = 259  # <unk>, <s>, </s> and the 256 bytes
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Preset:
    """Sizes, in GGUF's words. `n_vocab` None means the whole vocabulary."""

    vocabulary: Literal["bpe", "spm"]
    n_vocab: int | None
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_embd_head: int
    n_expert: int
    n_ctx_train: int
    rope_freq_base: float
    n_expert_used: int = 2


def _fixture(vocabulary: Literal["bpe", "spm"]) -> Preset:
    return Preset(vocabulary, 1000, 2, 256, 256, 4, 2, 64, n_expert=4, n_ctx_train=512, rope_freq_base=1e4)


def _tiny(vocabulary: Literal["bpe", "spm"]) -> Preset:
    return Preset(vocabulary, 4096, 2, 256, 512, 4, 2, 64, n_expert=8, n_ctx_train=2048, rope_freq_base=1e4)


PRESETS = {
    "fixture-bpe": _fixture("bpe"),
    "fixture-spm": _fixture("spm"),
    "tiny-bpe": _tiny("bpe"),
    "tiny-spm": _tiny("spm"),
    "mid": Preset("bpe", None, 8, 2048, 7168, 16, 4, 128, n_expert=8, n_ctx_train=8192, rope_freq_base=1e6),
    "mixtral-slice4": Preset(
        "spm", None, 4, 4096, 14336, 32, 8, 128, n_expert=8, n_ctx_train=32768, rope_freq_base=1e6
    ),
}


def add_bpe_vocabulary(writer: GGUFWriter, n_vocab: int | None) -> int:
    """SmolLM2's vocabulary, or its first `n_vocab` tokens. Returns the number of tokens.

    Tokens are specials, bytes, then merge products in rank order, so the first ones are a working vocabulary.
    """
    reader = GGUFReader(smollm2_file())
    cut = ("tokens", "token_type", "merges")
    tokens, types, merges = (reader.fields[f"tokenizer.ggml.{k}"].contents() for k in cut)
    tokens, types = tokens[:n_vocab], types[:n_vocab]
    known = set(tokens)
    pairs = [merge.split(" ") for merge in merges]
    copy_keys(reader, writer, prefix="tokenizer.", without=[f"tokenizer.ggml.{k}" for k in cut])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{a} {b}" for a, b in pairs if {a, b, a + b} <= known])
    return len(tokens)


def add_spm_vocabulary(writer: GGUFWriter, n_vocab: int | None) -> int:
    """Mixtral 8x7B's vocabulary, or `n_vocab` tokens of it. Returns the number of tokens.

    A short one holds the specials, the bytes, every ASCII character, every run of spaces and the frequent
    ASCII pieces. All runs of spaces have one score: without some of them, their merges would be ambiguous.
    """
    try:
        import sentencepiece
    except ImportError:
        raise SystemExit("The package sentencepiece is missing: pip install sentencepiece") from None
    path = package_file("mistral_common", "tokenizer.model.v1", "mistral-common")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = list(range(model.vocab_size()))
    if n_vocab:
        texts = {i: model.id_to_piece(i).replace("▁", " ") for i in ids[N_SPM_BASE:]}
        needed = [i for i, text in texts.items() if text.isascii() and (len(text) == 1 or text.isspace())]
        frequent = [i for i, text in texts.items() if text.isascii() and i not in needed]
        ids = ids[:N_SPM_BASE] + sorted(needed + frequent[: n_vocab - N_SPM_BASE - len(needed)])

    def token_type(i: int) -> TokenType:
        if model.is_unknown(i):
            return TokenType.UNKNOWN
        if model.is_control(i):
            return TokenType.CONTROL
        return TokenType.BYTE if model.is_byte(i) else TokenType.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types([token_type(i) for i in ids])
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(ids)


def normal(seed: list[int], shape: tuple[int, ...], mean: float, std: float, dtype: type) -> np.ndarray:
    """Normal numbers, made by all cores; they depend on the seed and not on the number of cores."""
    out: np.ndarray = np.empty(shape, dtype)
    flat, step = out.reshape(-1), 1 << 22

    def fill(i: int) -> None:
        part = flat[i * step : (i + 1) * step]
        rng = np.random.Generator(np.random.SFC64([*seed, i]))
        part[:] = rng.standard_normal(part.size, dtype=np.float32) * np.float32(std) + np.float32(mean)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(-(-flat.size // step))))
    return out


def weights(p: Preset, n_vocab: int, seed: int) -> Iterator[Tensor]:
    """All tensors. A matrix has the deviation gain / sqrt(inputs), so that activations keep their size."""
    n_embd_q, n_embd_gqa = p.n_head * p.n_embd_head, p.n_head_kv * p.n_embd_head
    count = 0

    def tensor(name: str, shape: tuple[int, ...], gain: float, qtype: GGMLQuantizationType = F16) -> Tensor:
        nonlocal count
        count += 1
        mean, std = (1.0, 0.1) if len(shape) == 1 else (0.0, gain / shape[-1] ** 0.5)
        dtype = np.float32 if qtype == F32 else np.float16
        return Tensor(name + ".weight", shape, qtype, partial(normal, [seed, count], shape, mean, std, dtype))

    yield tensor("token_embd", (n_vocab, p.n_embd), p.n_embd**0.5)
    for il in range(p.n_layer):
        blk = f"blk.{il}."
        yield tensor(blk + "attn_norm", (p.n_embd,), 1, F32)
        yield tensor(blk + "attn_q", (n_embd_q, p.n_embd), 1.5)
        yield tensor(blk + "attn_k", (n_embd_gqa, p.n_embd), 1.5)
        yield tensor(blk + "attn_v", (n_embd_gqa, p.n_embd), 1)
        yield tensor(blk + "attn_output", (p.n_embd, n_embd_q), 1)
        yield tensor(blk + "ffn_norm", (p.n_embd,), 1, F32)
        yield tensor(blk + "ffn_gate_inp", (p.n_expert, p.n_embd), 2, F32)
        yield tensor(blk + "ffn_gate_exps", (p.n_expert, p.n_ff, p.n_embd), 1)
        yield tensor(blk + "ffn_up_exps", (p.n_expert, p.n_ff, p.n_embd), 1)
        yield tensor(blk + "ffn_down_exps", (p.n_expert, p.n_embd, p.n_ff), 1)
    yield tensor("output_norm", (p.n_embd,), 1, F32)
    yield tensor("output", (n_vocab, p.n_embd), 3)


def write_f16(name: str, path: Path, seed: int) -> None:
    """The model with F16 matrices: what the quantized ones are made from."""
    p = PRESETS[name]
    writer = GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name(f"random {name}")
    writer.add_license("apache-2.0")  # the vocabulary's; the weights are random numbers
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(p.n_layer)
    writer.add_context_length(p.n_ctx_train)
    writer.add_embedding_length(p.n_embd)
    writer.add_feed_forward_length(p.n_ff)
    writer.add_head_count(p.n_head)
    writer.add_head_count_kv(p.n_head_kv)
    writer.add_key_length(p.n_embd_head)
    writer.add_value_length(p.n_embd_head)
    writer.add_rope_dimension_count(p.n_embd_head)
    writer.add_rope_freq_base(p.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(p.n_expert)
    writer.add_expert_used_count(p.n_expert_used)
    add_vocabulary = add_bpe_vocabulary if p.vocabulary == "bpe" else add_spm_vocabulary
    n_vocab = add_vocabulary(writer, p.n_vocab)
    writer.add_vocab_size(n_vocab)
    write_tensors(writer, list(weights(p, n_vocab, seed)))


def quantize(src: Path, dst: Path, quant: str) -> None:
    """Quantize with llama.cpp, which chooses each tensor's type as it does for published files."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant}")
    params.nthread = os.cpu_count()
    if llama_cpp.llama_model_quantize(bytes(src), bytes(dst), params):
        raise SystemExit(f"{dst}: llama.cpp could not quantize to {quant}")


def make(name: str, outdir: Path, quants: list[str], seed: int) -> None:
    """Write `NAME.TYPE.gguf` into `outdir` for each type. The others are quantized from F16."""
    try:
        import llama_cpp
    except ImportError:
        raise SystemExit("The package llama-cpp-python is missing: pip install llama-cpp-python") from None
    unknown = [quant for quant in quants if not hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant}")]
    if unknown:
        raise SystemExit(f"llama.cpp has no type {', '.join(unknown)}; Q4_K_M, Q6_K and Q8_0 are examples")
    outdir.mkdir(parents=True, exist_ok=True)
    paths = {quant: outdir / f"{name}.{quant}.gguf" for quant in ("F16", *quants)}
    try:
        write_f16(name, paths["F16"], seed)
        for quant in quants:
            if quant != "F16":
                quantize(paths["F16"], paths[quant], quant)
    finally:
        if "F16" not in quants:
            paths["F16"].unlink(missing_ok=True)
    for quant in quants:
        print(f"{paths[quant]} ({paths[quant].stat().st_size / 1e6:.1f} MB)")
