"""A tiny file with random weights for each architecture, with all that its files may have switched on.

The weights follow from the architecture's name alone, bit for bit, on every machine: tests make the files
again, and only what llama.cpp makes of them is stored. Names and shapes come from the architecture's own
tables (gguf_moe.arch); llama.cpp, which refuses what it does not expect, is the judge of those.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from model_file import add_key
from tiny_table import COMMON, TINY, arch_of
from tiny_vocabularies import add_vocabulary

from gguf_moe.arch import ARCHS
from gguf_moe.arch.base import Shape
from gguf_moe.arch.ssm import Ssm

Q4_0, Q5_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q5_1", "Q8_0"))
F32_PARTS = ("ffn_gate_inp", "bias", "ssm_conv1d")
"""Tensors with one of these in their names are F32 in all files."""
NVFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def write_tiny(
    name: str, path: Path, *, quantized: bool = False, keys: Mapping[str, Any] | None = None
) -> Path:
    """Write a file of TINY, quantized or with the same weights in F32; returns the path.

    keys: other values of the file's keys; the shapes follow them.
    """
    tiny, arch = TINY[name], arch_of(name)
    writer = GGUFWriter(path, arch)
    writer.add_name(f"tiny {name}")
    n_vocab = add_vocabulary(writer, tiny.pre)
    keys = COMMON | dict(tiny.keys) | dict(keys or {})
    keys["block_count"] = tiny.n_layer + tiny.n_nextn
    if tiny.n_nextn:
        keys["nextn_predict_layers"] = tiny.n_nextn
    for key, value in keys.items():
        add_key(writer, f"{arch}.{key}", value)
    shapes = dict(_tensors(name, keys, n_vocab))
    if tiny.has_scales:
        shapes |= dict(_scales(shapes))
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    for tensor, shape in shapes.items():
        data, qtype = _random(name, tensor, shape, tiny.output_gain if tensor == head else None), None
        if len(shape) > 1 and not any(part in tensor for part in F32_PARTS):
            rows, qtype = _quantized(tensor, data, tiny.expert_type)
            data = rows if quantized else dequantize(rows, qtype)
        writer.add_tensor(tensor, data, raw_dtype=qtype if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _scales(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a number for each matrix that may have one, or for each of its experts."""
    for name, shape in shapes.items():
        # llama.cpp reads that of the output matrix only if it is in NVFP4.
        if name.startswith("blk.") and len(shape) > 1 and not any(part in name for part in F32_PARTS):
            yield f"{name.removesuffix('weight')}scale", shape[:1] if len(shape) == 3 else (1,)


def digest(path: Path) -> str:
    """A SHA-256 of a file's tensors and of what the model is computed by, whatever wrote the file."""
    reader, total = GGUFReader(path), hashlib.sha256()
    arch = reader.fields["general.architecture"].contents()
    for key in sorted(reader.fields):
        if key.startswith((f"{arch}.", "tokenizer.")):
            total.update(f"{key}={reader.fields[key].contents()};".encode())
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name):
        total.update(f"{tensor.name}:{tensor.tensor_type.name}:{tensor.shape.tolist()};".encode())
        total.update(tensor.data.tobytes())
    return total.hexdigest()


def _tensors(file: str, keys: Mapping[str, Any], n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, outermost dimension first."""
    arch = arch_of(file)
    table, tiny, sizes = ARCHS[arch], TINY[file], _sizes(file, keys, n_vocab, None)

    def chosen(prefix: str, tables: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, shape in tables.items():
            if (shape.required or name in tiny.optional) and prefix + name not in tiny.without:
                yield prefix + name, tuple(sizes.get(size, 1) for size in reversed(shape.dimensions))

    n_embd, n_expert, n_ff_exp = sizes["n_embd"], sizes["n_expert"], sizes["n_ff_exp"]
    yield from chosen("", table.tensors)
    for il in range(tiny.n_layer + tiny.n_nextn):
        blk, sizes = f"blk.{il}.", _sizes(file, keys, n_vocab, il)
        attention = dict(table.recurrent_tensors if il in tiny.recurrent else table.block_tensors)
        if tiny.fused_qkv:
            del attention["attn_q.weight"], attention["attn_k.weight"], attention["attn_v.weight"]
            n_qkv = sizes["n_embd_q"] + sizes["n_embd_k_gqa"] + sizes["n_embd_v_gqa"]
            yield f"{blk}attn_qkv.weight", (n_qkv, n_embd)
        for size, (where_it_is, where_not) in table.block_forms.items():
            attention |= where_it_is if sizes[size] else where_not
        yield from chosen(blk, attention)
        if il in tiny.dense:
            yield from chosen(blk, table.dense_tensors)
            continue
        yield f"{blk}ffn_gate_inp.weight", (n_expert, n_embd)
        if tiny.fused_gate_up:
            yield f"{blk}ffn_gate_up_exps.weight", (n_expert, 2 * n_ff_exp, n_embd)
        else:
            yield f"{blk}ffn_gate_exps.weight", (n_expert, n_ff_exp, n_embd)
            yield f"{blk}ffn_up_exps.weight", (n_expert, n_ff_exp, n_embd)
        yield f"{blk}ffn_down_exps.weight", (n_expert, n_embd, n_ff_exp)
        yield from chosen(blk, table.moe_tensors)
        if il >= tiny.n_layer:
            yield f"{blk}nextn.eh_proj.weight", (n_embd, 2 * n_embd)
            yield f"{blk}nextn.enorm.weight", (n_embd,)
            yield f"{blk}nextn.hnorm.weight", (n_embd,)
            if arch == "bailingmoe2":
                yield f"{blk}layer_output_norm.weight", (n_embd,)


def _sizes(file: str, keys: Mapping[str, Any], n_vocab: int, il: int | None) -> dict[str, int]:
    """The sizes by the names of the tables, for layer il or outside of the layers."""
    n_embd, n_head = keys["embedding_length"], keys["attention.head_count"]
    n_embd_head = keys.get("attention.key_length", n_embd // n_head)
    value_length = keys.get("attention.value_length", n_embd_head)
    n_head_kv, pattern = keys["attention.head_count_kv"], keys.get("attention.sliding_window_pattern")
    if il is not None and isinstance(n_head_kv, list):
        n_head_kv = n_head_kv[il]
    if il is not None and pattern and pattern[il]:
        n_embd_head = keys.get("attention.key_length_swa", n_embd_head)
        value_length = keys.get("attention.value_length_swa", value_length)
    n_embd_gqa = n_embd_head * (max(n_head_kv) if isinstance(n_head_kv, list) else n_head_kv)
    n_rot, n_lora_kv = keys.get("rope.dimension_count", n_embd_head), keys.get("attention.kv_lora_rank", 0)
    n_embd_head_k = keys.get("attention.key_length_mla", n_embd_head)
    n_embd_head_v = keys.get("attention.value_length_mla", value_length)
    return {
        "n_vocab": n_vocab,
        "n_embd": n_embd,
        "n_head": n_head,
        "n_embd_q": n_head * n_embd_head_k,
        "n_embd_q_gate": 2 * n_head * n_embd_head_k,
        "n_embd_out": n_head * n_embd_head_v,
        "n_embd_k_gqa": n_embd_gqa,
        "n_embd_v_gqa": n_embd_gqa,
        "n_embd_head_k": n_embd_head,
        "n_rot_pairs": n_rot // 2,
        "n_lora_q": keys.get("attention.q_lora_rank", 0),
        "n_lora_kv": n_lora_kv,
        "is_mla": "attention.key_length_mla" in keys,
        "n_embd_head_v_mla": n_embd_head_v,
        "n_embd_head_qk_nope": n_embd_head_k - n_rot,
        "n_embd_kv_a": n_lora_kv + n_rot,
        "n_embd_kv_b": n_head * (n_embd_head_k - n_rot + n_embd_head_v),
        "n_ff": keys["feed_forward_length"],
        "n_ff_exp": keys.get("expert_feed_forward_length", keys["feed_forward_length"]),
        "n_ff_shexp": TINY[file].shared,
        "n_expert": keys["expert_count"],
        **_ssm_sizes(keys),
    }


def _ssm_sizes(keys: Mapping[str, Any]) -> dict[str, int]:
    """Those of recurrent layers, if there are some."""
    if "ssm.state_size" not in keys:
        return {}
    ssm = Ssm(
        d_conv=keys["ssm.conv_kernel"],
        d_inner=keys["ssm.inner_size"],
        d_state=keys["ssm.state_size"],
        dt_rank=keys["ssm.time_step_rank"],
        n_group=keys["ssm.group_count"],
    )
    names = ("d_conv", "d_inner", "d_state", "dt_rank", "n_qkv", "n_qkvz", "n_ba")
    return {f"ssm.{name}": getattr(ssm, name) for name in names}


def _random(file: str, name: str, shape: tuple[int, ...], gain: float | None) -> np.ndarray:
    """Uniform float32 numbers, around 1 for norms, around 0 for matrices, whose outputs have the size `gain`.

    Of numpy's generators only the raw bits are the same in every version.
    """
    seed = np.frombuffer(hashlib.sha256(f"{file} {name}".encode()).digest(), np.uint32)
    raw = np.random.SFC64(np.random.SeedSequence(seed.tolist())).random_raw(int(np.prod(shape)))
    uniform = ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)).reshape(
        shape
    )
    if re.search(r"norm(_\d)?\.weight$|scale(\.weight)?$", name):
        return np.float32(1.0) + np.float32(0.25) * uniform
    if name.startswith("rope_"):
        return np.float32(2.0) + uniform * np.float32(0.75)
    if name.endswith("ssm_a"):  # with ssm_dt: a state lasts for some ten tokens
        return np.float32(-1.0) + uniform * np.float32(0.75)
    if name.endswith("ssm_dt.bias"):
        return np.float32(-2.0) + uniform
    if "attn_sinks" in name:
        return uniform * np.float32(3.0)
    if name.endswith("_exps.bias"):
        return uniform * np.float32(0.25)
    if len(shape) == 1:
        return uniform * np.float32(0.1 if "exp_probs_b" in name else 0.25)
    if gain is None:
        # The residual stream begins with elements of size 1, whoever scales the embeddings.
        gain = 1.5
        if name == "token_embd.weight":
            gain = 1.0 if ARCHS[arch_of(file)].scales_embeddings else math.sqrt(shape[-1])
    return uniform * np.float32(gain * math.sqrt(3.0 / shape[-1]))


def _quantized(
    name: str, data: np.ndarray, expert_type: GGMLQuantizationType | None
) -> tuple[np.ndarray, GGMLQuantizationType]:
    """A matrix as blocks, and their type; together the types of a file are a mix."""
    qtype = Q8_0
    if "_exps" in name:
        qtype = expert_type or (Q5_1 if "down" in name else Q4_0)
    if qtype == GGMLQuantizationType.NVFP4:
        return _quantize_nvfp4(data), qtype
    return quantize(data, qtype), qtype


def _quantize_nvfp4(data: np.ndarray) -> np.ndarray:
    """Blocks of 64 weights: four bytes of scales (4 bits of exponent, 3 of mantissa), then the nibbles."""
    groups = data.reshape(-1, 4, 16)
    byte = np.arange(1, 0x7F)
    exponent, mantissa = byte >> 3, byte & 7
    scales = np.ldexp(np.where(exponent, 8.0, 0.0) + mantissa, np.maximum(exponent, 1) - 10)
    largest = np.abs(groups).max(axis=2) / 6
    chosen = np.searchsorted(scales, largest).clip(max=len(scales) - 1)
    x = groups / scales[chosen][..., None]
    number = np.abs(np.abs(x)[..., None] - NVFP4_VALUES).argmin(axis=-1).astype(np.uint8)
    codes = (number | (x < 0).astype(np.uint8) << 3).reshape(-1, 4, 2, 8)
    blocks = np.concatenate(
        [byte[chosen].astype(np.uint8), (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 32)], axis=1
    )
    return blocks.reshape(*data.shape[:-1], -1)
