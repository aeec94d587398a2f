"""Which device a model gets when the GPU cannot run it."""

import logging

import pytest

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Kind, Op
from gguf_moe.runtime.gpu import ops, placement
from gguf_moe_kernels.quants import GGMLType


@pytest.fixture
def model(tiny_gguf, tmp_path):
    with open_checkpoint(tiny_gguf(tmp_path / "model.gguf", qtypes=[GGMLType.Q4_K])) as checkpoint:
        yield read_model(checkpoint)


def test_a_model_with_an_operation_that_the_gpu_lacks_runs_on_the_cpu(model, monkeypatch, caplog):
    monkeypatch.setattr(ops, "OPS", ops.OPS - {Op.ROPE})
    with caplog.at_level(logging.INFO):
        assert placement.open_device("auto", *model, Kind.F16, None) is None
    assert "runs on the CPU alone: the GPU does not have this model's rope operation yet" in caplog.text
    with pytest.raises(UnsupportedModelError, match="rope operation yet; use --device cpu"):
        placement.open_device("cuda:0", *model, Kind.F16, None)


def test_who_asks_for_gpu_memory_is_warned_where_no_gpu_is_used(model, monkeypatch, caplog):
    monkeypatch.setattr(ops, "OPS", ops.OPS - {Op.ROPE})
    with caplog.at_level(logging.WARNING):
        assert placement.open_device("auto", *model, Kind.F16, None) is None
        assert not caplog.text
        assert placement.open_device("auto", *model, Kind.F16, None, "12G") is None
        assert "runs on the CPU alone" in caplog.text
        caplog.clear()
        assert placement.open_device("cpu", *model, Kind.F16, None, "12G") is None
        assert not caplog.text
