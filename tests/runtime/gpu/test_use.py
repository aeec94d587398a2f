"""What users see of a GPU: counts of its cache, heat between runs, measurements, and the commands' output."""

import json
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner

import gguf_moe
from gguf_moe import bench as bench_room
from gguf_moe.bench import Bench, BenchTest
from gguf_moe.cli import cli
from gguf_moe.cli.usage import usage_line
from gguf_moe.errors import OptionError
from gguf_moe.experts.routing import Recorder, Replay, Routing, load_routing, save_routing
from gguf_moe.options import Options
from gguf_moe.runtime import bandwidth
from gguf_moe.runtime.gpu import placement
from gguf_moe.runtime.gpu.usage import Usage
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cuda.source import QTYPES
from gguf_moe_kernels.structs import READ_CHUNK

N_LAYER, N_EXPERT, N_USED = 2, 4, 2


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    path = tmp_path_factory.mktemp("models") / "moe.gguf"
    qtypes = tuple(qtype for qtype in ACTIVATION_FORMAT if qtype.name.lower() in QTYPES)
    return tiny_gguf(path, n_layer=N_LAYER, n_expert=N_EXPERT, n_expert_used=N_USED, seed=7, qtypes=qtypes)


@pytest.fixture
def with_gpu(make_device, monkeypatch):
    """Loading finds this device."""

    def open_device(name, *arguments):
        return make_device() if name != "cpu" else None

    monkeypatch.setattr(placement, "open_device", open_device)
    monkeypatch.setattr(bench_room.bench, "open_device", open_device)
    monkeypatch.setattr(bandwidth, "LEAST_BUFFER", 4 * READ_CHUNK)
    monkeypatch.setattr(bandwidth, "TIMES_THE_CACHE", 0)


def test_usage_counts_tokens_hits_misses_and_waiting(hybrid_context, moe_file):
    always = np.tile(np.array([0, 3]), (1, N_LAYER, 1))
    with hybrid_context(moe_file, 1, policy="static", replay=Replay(Routing(always, N_EXPERT))) as context:
        context.extend([1, 2, 3], 1)
        earlier = context.gpu.usage()
        context.extend([4], 1)
        context.extend([5], 1)
        usage = context.gpu.usage() - earlier
    assert (earlier.n_tokens, usage.n_tokens) == (3, 2)
    # Slots are filled from the first expert on, and the static policy leaves it there.
    assert (usage.hits, usage.misses, usage.uploads) == (2 * N_LAYER, 2 * N_LAYER, 0)
    assert (usage.hit_rate, usage.misses_per_token) == (0.5, N_LAYER)
    assert 0 < usage.gpu_waited_s < usage.step_s
    assert 0 < usage.cpu_waited_s < usage.step_s
    assert 0 < usage.cpu_share < 1


def test_nothing_has_happened_yet():
    usage = Usage()
    assert (usage.hit_rate, usage.misses_per_token, usage.uploaded_bytes_per_token) == (0, 0, 0)
    assert (usage.gpu_share, usage.cpu_share) == (0, 0)


def test_the_line_fits_into_80_columns():
    line = usage_line(Usage(1, 0, 384, 99, 9_999_900_000, 1.0, 0.0, 0.0))
    assert line == "0.0 % hits; a token: 384.0 misses, 9999.9 MB; GPU 100 %, CPU 100 %"
    assert len(line) <= 80


def test_a_warm_start_holds_the_experts_that_were_hot(with_gpu, moe_file, tmp_path, kernel_cache):
    options = {"n_ctx": 32, "threads": 1, "cache_dir": kernel_cache, "device": "cuda:0"}
    with gguf_moe.load(moe_file, **options) as model:
        model.logits([1, 2, 3])
        model.save_heat(tmp_path / "heat.json")
        heat = model.gpu.slots.cache.heat()
    with gguf_moe.load(moe_file, heat=tmp_path / "heat.json", **options) as model:
        np.testing.assert_allclose(model.gpu.slots.cache.heat(), heat, atol=1e-4)
    with (
        gguf_moe.load(moe_file, policy="lru", **options) as model,
        pytest.raises(OptionError, match="there is no heat to save"),
    ):
        model.save_heat(tmp_path / "heat.json")


def test_warm_slots_are_those_of_the_hottest(hybrid_context, moe_file):
    with hybrid_context(moe_file, 2, fill=False) as context:
        context.gpu.slots.warm([[0.5, 3.0, 0.1, 2.0], [4.0, 3.0, 2.0, 1.0]])
        cache = context.gpu.slots.cache
        held = [[ie for ie in range(N_EXPERT) if cache.slot_of(il, ie) is not None] for il in range(N_LAYER)]
    assert held == [[1, 3], [0, 1]]


def test_a_measurement_sends_tokens_along_the_trace(with_gpu, moe_file, tmp_path, kernel_cache):
    path = tmp_path / "trace.npz"
    save_routing(path, Routing(np.tile(np.array([1, 2]), (5, N_LAYER, 1)), N_EXPERT))
    with Bench(moe_file, Options(cache_dir=kernel_cache, device="cuda:0"), routing=path) as bench:
        with closing(bench.context(4, 1)) as context:
            context.recorder = Recorder(N_LAYER, range(N_LAYER), N_EXPERT, N_USED)
            context.extend([5, 6], 1)
            assert (context.recorder.routing({}).ids == [1, 2]).all()
        row = bench.run(BenchTest(1, n_gen=3), repetitions=2)
    assert (row.usage.n_tokens, row.usage.hits + row.usage.misses) == (6, 6 * N_LAYER * N_USED)


def test_a_trace_of_another_model_is_refused(moe_file, tmp_path, kernel_cache):
    save_routing(tmp_path / "trace.npz", Routing(np.zeros((5, 7, 2), np.uint8), N_EXPERT))
    with pytest.raises(OptionError, match="the trace has 7 layers"):
        Bench(moe_file, Options(cache_dir=kernel_cache, device="cpu"), routing=tmp_path / "trace.npz")


def test_generate_tells_and_writes_all_of_it(with_gpu, moe_file, tmp_path, kernel_cache):
    heat, routing = tmp_path / "heat.json", tmp_path / "routing.npz"
    arguments = [
        "generate",
        "-m",
        moe_file,
        "a",
        "-n",
        "3",
        "--ctx",
        "64",
        "-t",
        "1",
        "--device",
        "cuda:0",
        "--json",
    ]
    arguments += ["--cache-dir", kernel_cache, "--heat", heat, "--record-routing", routing]
    for _ in range(2):
        done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
        gpu = json.loads(done.stdout)["gpu"]
        assert gpu["slots_per_layer"] == [N_EXPERT] * N_LAYER
        assert (gpu["hit_rate"], gpu["misses"]) == (1.0, 0)
        assert load_routing(routing).n_steps == gpu["tokens"]
        assert json.loads(heat.read_text())["format"] == "gguf-moe heat 1"
        assert "100.0 % hits" in done.stderr


def test_bench_has_a_line_for_the_gpu(with_gpu, moe_file, kernel_cache):
    arguments = ["bench", "-m", moe_file, "-p", "4", "-n", "2", "-r", "1", "-t", "1", "--device", "cuda:0"]
    arguments += ["--vram", "0.5", "--cache-dir", kernel_cache]
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all("% hits; a token:" in line and len(line) <= 80 for line in lines[2::2])
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["rows"][1]["gpu"]["tokens"] == 2
