"""The comparison's plans, and one of its arms on a tiny model."""

import bench_gpu
import gpu_arm
import pytest
import synthetic_routing

from gguf_moe_kernels.quants import GGMLType


def test_every_arm_has_a_name_and_its_peer_before_it():
    for arms in bench_gpu.plans().values():
        names = [arm.name for arm in arms]
        assert len(set(names)) == len(names)
        assert all(arm.like in names[:i] for i, arm in enumerate(arms) if arm.like)
        assert all((arm.n_cpu_moe is None) != (arm.config is None) for arm in arms)


@pytest.mark.parametrize("overlap", [True, False])
def test_an_arm_measures_cold_and_warm(tiny_gguf, tmp_path, make_device, monkeypatch, overlap):
    path = tiny_gguf(tmp_path / "moe.gguf", qtypes=(GGMLType.Q8_0,))
    monkeypatch.setattr("gguf_moe.runtime.gpu.device.CudaDevice", lambda index, cache: make_device())
    shape = synthetic_routing.Shape(4, 2, 1, 1, 1, 0.5)
    monkeypatch.setitem(synthetic_routing.SHAPES, "tiny", shape)
    for name in ("N_COLD", "N_WARM_UP", "N_PART"):
        monkeypatch.setattr(gpu_arm, name, 2)
    monkeypatch.setattr(gpu_arm, "TOKEN", 3)
    config = gpu_arm.Config("tiny", 2, 32, share=0.5, policy="lru", overlap=overlap, threads=1)
    result = gpu_arm.measure(path, config)
    assert result["slots_per_layer"] == [2, 2]
    assert len(result["warm"]) == 4
    assert result["usage"]["n_tokens"] == 8
    assert result["usage"]["hits"] + result["usage"]["misses"] == 8 * 2 * 2
