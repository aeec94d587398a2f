"""Where the link helps the CPU within a step."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_moe.arch.weights import Experts
from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.runtime.gpu import link
from gguf_moe_kernels.quants import GGMLType


def tensors(qtype, nbytes, start=0x1000):
    return ExpertTensors((256, 256), (qtype,) * 2, (start, start + nbytes), (nbytes,) * 2)


@pytest.fixture
def experts():
    """Down matrices have a third of an expert's bytes."""
    same = tensors(GGMLType.Q4_K, 1600)
    return Experts(None, same, same, same)


@pytest.mark.parametrize(
    "down",
    [
        tensors(GGMLType.Q4_K, 1608),
        tensors(GGMLType.Q4_K, 1600, start=0x1008),
        replace(tensors(GGMLType.Q4_K, 1600), qtypes=(GGMLType.Q4_K, GGMLType.Q6_K)),
    ],
    ids=["odd sizes", "odd addresses", "several types"],
)
def test_what_the_kernels_cannot_do_is_left_to_the_cpu(experts, down):
    rates = link.Rates(80, 40)
    assert link.rows_over_link(experts, rates, can_cut=True) == 256
    assert link.rows_over_link(replace(experts, ffn_down_exps=down), rates, can_cut=True) == 0


@pytest.mark.parametrize(
    ("rates", "can_cut", "expected"),
    [((80, 40), True, 256), ((80, 20), True, 128), ((80, 20), False, 256), ((80, 0.1), True, 0)],
)
def test_both_sides_get_as_much_as_they_can_do_in_the_same_time(experts, rates, can_cut, expected):
    assert link.rows_over_link(experts, link.Rates(*rates), can_cut) == expected


def test_the_links_rate_counts_what_it_brought_while_the_cpu_read(monkeypatch):
    file, copies = np.zeros(3 << 20, np.uint8), []
    seconds = [0.0, 0.5]
    monkeypatch.setattr(link, "PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(link.time, "perf_counter", lambda: seconds.pop(0))
    meter = SimpleNamespace(measure=lambda n_threads: 1e9 * n_threads)
    monkeypatch.setattr(link, "BandwidthMeter", lambda library, buffer: meter)
    device = SimpleNamespace(
        allocate=lambda nbytes: 7,
        free=lambda address: None,
        stream=lambda: None,
        copy=lambda stream, target, source, nbytes: copies.append((target, source, nbytes)),
        event=lambda stream: len(copies),
        is_done=lambda n: n <= 10,
        is_idle=lambda stream: True,
    )
    library = SimpleNamespace(prepare=lambda names, progress: None)
    rates = link.measured_rates(device, SimpleNamespace(buffers=[file[:9], file]), library, 4)
    assert rates == (link.CPU_SHARE * 4e9, link.LINK_SHARE * 10 * (1 << 20) / 0.5)
    start = file.ctypes.data
    assert {(target, source - start, nbytes) for target, source, nbytes in copies} == {
        (7, i << 20, 1 << 20) for i in range(3)
    }


def run(trial, n, seconds):
    """The ways of n steps, of which way w takes seconds[w], and the first after a change a second more."""
    ways = []
    for _ in range(n):
        is_first = not ways or trial.way != ways[-1]
        ways.append(trial.way)
        trial.took(seconds[trial.way] + is_first)
    return ways


@pytest.mark.parametrize("seconds", [(2.0, 1.0), (1.0, 2.0), (3.0, 2.0, 1.0)])
def test_the_fastest_way_is_kept_and_others_are_tried_again(seconds):
    trial = link.Trial(len(seconds))
    assert trial.best == 0
    ways = run(trial, 2000, seconds)
    assert trial.best == seconds.index(1.0)
    assert set(ways[-600:]) == set(range(len(seconds)))
    assert ways[-600:].count(trial.best) > 0.9 * 600


def test_another_way_is_found_when_it_becomes_faster():
    trial = link.Trial(2)
    run(trial, 500, (1.0, 2.0))
    run(trial, 500, (3.0, 2.0))
    assert trial.best == 1


def test_one_way_is_always_taken():
    assert run(link.Trial(1), 700, (1.0,)) == [0] * 700
