"""Experts: the same view of every form in which files store them."""

import ctypes

import pytest

from gguf_moe.checkpoint import expert_tensors, open_checkpoint
from gguf_moe.errors import BusyError, GGUFError
from gguf_moe_kernels.quants import GGMLType

N_IN, N_OUT, N_EXPERT = 8, 3, 4
SIZE = N_IN * N_OUT * 4


def bytes_at(address, n):
    return ctypes.string_at(address, n)


@pytest.fixture
def open_model(gguf_writer, write):
    """Open a model of these tensors; its experts have n_in = 8 and n_out = 3."""
    opened = []

    def open_tensors(tensors):
        opened.append(open_checkpoint(write(gguf_writer.model(tensors=tensors))))
        return opened[-1]

    yield open_tensors
    for checkpoint in opened:
        checkpoint.close()


def singles(role, experts=range(N_EXPERT), shape=(N_IN, N_OUT)):
    return [(f"blk.2.ffn_{role}.{ie}.weight", shape) for ie in experts]


@pytest.mark.parametrize("role", ["gate", "up", "down"])
def test_one_tensor_for_all(open_model, role):
    name = f"blk.2.ffn_{role}_exps.weight"
    checkpoint = open_model([("x", (5,)), (name, (N_IN, N_OUT, N_EXPERT))])
    experts = expert_tensors(checkpoint, 2, role, N_EXPERT, N_IN, N_OUT)
    data = checkpoint.tensor(name).data.tobytes()
    assert experts.shape == (N_IN, N_OUT)
    assert experts.qtypes == (GGMLType.F32,) * N_EXPERT
    assert experts.nbytes == (SIZE,) * N_EXPERT
    assert b"".join(bytes_at(address, SIZE) for address in experts.addresses) == data


def test_gate_and_up_in_one_tensor(open_model):
    name = "blk.2.ffn_gate_up_exps.weight"
    checkpoint = open_model([(name, (N_IN, 2 * N_OUT, N_EXPERT))])
    gate = expert_tensors(checkpoint, 2, "gate", N_EXPERT, N_IN, N_OUT)
    up = expert_tensors(checkpoint, 2, "up", N_EXPERT, N_IN, N_OUT)
    pieces = [bytes_at(a, SIZE) for pair in zip(gate.addresses, up.addresses, strict=True) for a in pair]
    assert b"".join(pieces) == checkpoint.tensor(name).data.tobytes()
    assert gate.nbytes == up.nbytes == (SIZE,) * N_EXPERT
    with pytest.raises(GGUFError, match=r"'blk.2.ffn_down_exps.weight' is missing"):
        expert_tensors(checkpoint, 2, "down", N_EXPERT, N_IN, N_OUT)


def test_one_tensor_for_each_and_types_that_differ(gguf_writer, write):
    g = gguf_writer
    types = [GGMLType.F32, GGMLType.Q4_0, GGMLType.Q8_0]
    table, data = [], b""
    for ie in (2, 0, 1):  # in any order
        table.append(g.tensor(f"blk.0.ffn_up.{ie}.weight", [32, 2], len(data), types[ie]))
        n = types[ie].row_size(32) * 2
        data += bytes([ie]) * n + bytes(-n % 32)
    with open_checkpoint(write(g.file([], table, data))) as checkpoint:
        experts = expert_tensors(checkpoint, 0, "up", 3, 32, 2)
        assert experts.qtypes == tuple(types)
        assert experts.nbytes == (256, 36, 68)
        for ie, (address, nbytes) in enumerate(zip(experts.addresses, experts.nbytes, strict=True)):
            assert bytes_at(address, nbytes) == bytes([ie]) * nbytes


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([], r"the tensor 'blk.2.ffn_up_exps.weight' is missing"),
        (singles("up", [0, 1, 3]), r"incomplete: blk.2.ffn_up.2.weight is missing \(3 of 4 are there\)"),
        (singles("up", [3]), r"incomplete: blk.2.ffn_up.0.weight is missing \(1 of 4 are there\)"),
        (
            singles("up", range(5)),
            r"there is a tensor blk.2.ffn_up.4.weight, but by the metadata only 4 experts",
        ),
        (
            singles("up", range(3)) + singles("up", [3], (N_OUT, N_IN)),
            r"'blk.2.ffn_up.3.weight' has the shape \[3, 8\], but by the metadata it must be \[8, 3\]",
        ),
        (
            [("blk.2.ffn_up_exps.weight", (N_IN, N_OUT, 5))],
            r"has the shape \[8, 3, 5\], but by the metadata it must be \[8, 3, 4\]",
        ),
        (
            [("blk.2.ffn_up_exps.weight", (N_IN, N_OUT, N_EXPERT)), *singles("up", [1])],
            "twice, as blk.2.ffn_up_exps.weight and as blk.2.ffn_up.1.weight",
        ),
        (
            [
                ("blk.2.ffn_up_exps.weight", (N_IN, N_OUT, N_EXPERT)),
                ("blk.2.ffn_gate_up_exps.weight", (N_IN, 2 * N_OUT, N_EXPERT)),
            ],
            "twice, as blk.2.ffn_up_exps.weight and as blk.2.ffn_gate_up_exps.weight",
        ),
    ],
)
def test_incomplete_or_contradictory(open_model, tensors, expected):
    with pytest.raises(GGUFError, match=expected):
        expert_tensors(open_model(tensors), 2, "up", N_EXPERT, N_IN, N_OUT)


def test_role_and_closed(open_model):
    checkpoint = open_model([("blk.2.ffn_up_exps.weight", (N_IN, N_OUT, N_EXPERT))])
    with pytest.raises(ValueError, match="role is 'router'"):
        expert_tensors(checkpoint, 2, "router", N_EXPERT, N_IN, N_OUT)
    checkpoint.close()
    with pytest.raises(BusyError):
        expert_tensors(checkpoint, 2, "up", N_EXPERT, N_IN, N_OUT)
