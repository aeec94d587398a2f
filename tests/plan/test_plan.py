"""Plans: bytes, placement, and what is measured once."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import gguf_moe
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.cli import cli
from gguf_moe.options import Options
from gguf_moe.plan import make_plan, speed
from gguf_moe.plan.placing import CUDA_BYTES
from gguf_moe.plan.speed import FILE
from gguf_moe.runtime import bandwidth

FIXTURES = Path(__file__).parents[1] / "fixtures"
MOE = FIXTURES / "fixture-bpe.Q4_K_M.gguf"
DEMO = Path(gguf_moe.__file__).parent / "models" / "demo.gguf"


@pytest.fixture
def plan(kernel_cache, monkeypatch):
    """Plan for a file with two threads; measurements are forgotten afterwards."""
    monkeypatch.setattr(bandwidth, "LEAST_BUFFER", 1 << 24)
    monkeypatch.setattr(bandwidth, "TIMES_THE_CACHE", 0)
    monkeypatch.setattr(speed, "MEASURED_S", 0.0)

    def plan(path=MOE, **options):
        names = {"ram", "measures", "again"} & set(options)
        others = {name: options.pop(name) for name in names}
        return make_plan(path, Options(threads=2, cache_dir=kernel_cache, **options), **others)

    yield plan
    (kernel_cache / FILE).unlink(missing_ok=True)


@pytest.mark.parametrize("path", [MOE, DEMO])
def test_all_weights_are_counted_once(plan, path):
    with open_checkpoint(path) as checkpoint:
        total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    sizes = plan(path, measures=False).sizes
    assert sizes.always_used + sizes.experts == total
    assert 0 < sizes.experts_per_token < sizes.per_token < total


def test_a_gpu_gets_what_is_always_used_and_experts_as_far_as_they_go(plan):
    base = plan(measures=False)
    assert base.gpu is None
    least = base.sizes.always_used + base.sizes.kv_cache + CUDA_BYTES
    small, some, all_ = (
        plan(measures=False, vram=f"{size / 1e6:.6f}M", n_ctx=base.n_ctx).gpu
        for size in (least * 0.9, least + base.sizes.experts / 2, least + 2 * base.sizes.experts)
    )
    assert small.room < 0
    assert small.slots == 0
    assert 0 < some.slots < some.n_experts == base.hparams.n_expert * base.hparams.n_layer
    assert all_.share == 1.0
    assert 0 < some.room <= some.budget
    for gpu in (some, all_):
        assert 0 < gpu.expert_bytes <= gpu.room + base.sizes.kv_cache - base.sizes.first_kv_cache
    assert all_.expert_bytes >= base.sizes.experts


def test_too_little_memory_is_the_limit(plan):
    made = plan(measures=False, ram="1M")
    assert not made.fits
    assert "main memory" in made.limit
    assert "GB more memory" in made.advice
    assert plan(measures=False).fits
    assert not plan(measures=False, vram="100M").fits


def test_the_speed_is_measured_once(plan, kernel_cache, monkeypatch):
    made = plan()
    assert made.speed.prompt > made.speed.decode > 0
    assert made.decode == made.speed.decode
    assert made.limit in ("memory bandwidth", "the CPU's arithmetic")
    assert plan(ram="1T").speed == made.speed
    assert plan(measures=False).speed == made.speed
    assert plan(kv_type="f32", measures=False).speed is None
    assert plan(again=True).speed != made.speed
    (kernel_cache / FILE).write_text("{damaged")
    assert plan(measures=False).speed is None


def test_missing_experts_set_the_pace_beside_a_gpu(plan):
    made = plan()
    gpu = plan(vram="2G").gpu
    some = replace(made, gpu=replace(gpu, slots=gpu.n_experts // 2))
    missed = made.sizes.experts_per_token / 2
    assert some.decode == pytest.approx(made.speed.decode * made.sizes.per_token / missed)
    assert replace(made, gpu=gpu).decode is None
    assert replace(made, gpu=gpu).limit == "the GPU"


@pytest.mark.parametrize("option", ["0.5", "much", "12"])
def test_a_gpus_size_must_be_a_size(plan, option):
    with pytest.raises(gguf_moe.OptionError, match=r"the GPU memory is"):
        plan(measures=False, vram=option)


def test_main_memory_must_be_a_size(plan):
    with pytest.raises(gguf_moe.OptionError, match="the main memory is 'lots'"):
        plan(measures=False, ram="lots")


@pytest.fixture
def run(kernel_cache):
    def run(*arguments):
        return CliRunner().invoke(cli, ["plan", *map(str, arguments), "--cache-dir", str(kernel_cache)])

    return run


def test_the_command_says_it_in_80_columns(plan, run):
    plan()
    for arguments in ((), ("--vram", "2G"), ("--vram", "510M"), ("--ram", "1M"), ("--no-measure", "-t", "1")):
        done = run(MOE, "-t", "2", *arguments)
        assert done.exit_code == 0, done.output
        assert re.search(r"^It (fits|does not fit)\.$", done.stdout, re.MULTILINE)
        assert "would help" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
    assert "tok/s with 2 threads" in run(MOE, "-t", "2").stdout


def test_a_gpus_kv_cache_begins_with_a_block(plan, run):
    short, long = (plan(measures=False, vram="2G", n_ctx=n).sizes for n in (1024, 4096))
    assert short.first_kv_cache == short.kv_cache == long.first_kv_cache
    assert long.kv_cache == 4 * short.kv_cache
    arguments = (MOE, "--no-measure", "--ctx")
    assert "KV cache grows to" in run(*arguments, 4096, "--vram", "2G").stdout
    assert "grows to" not in run(*arguments, 1024, "--vram", "2G").stdout
    assert "takes memory as it fills" in run(*arguments, 4096).stdout


def test_the_command_gives_one_object(plan, run):
    plan()
    report = json.loads(run(MOE, "-t", "2", "--vram", "2G", "--json").stdout)
    assert report["gpu"]["experts"] == report["gpu"]["experts_of"] == 8
    assert report["speed"]["layers_measured"] == 2


def test_generate_compares_itself_with_the_plan(plan, kernel_cache):
    plan()
    arguments = ["generate", "-m", str(MOE), "Hi", "-n", "12", "--temp", "0", "-t", "2"]
    done = CliRunner().invoke(cli, [*arguments, "--cache-dir", str(kernel_cache)])
    assert re.search(r"^\d+ % of the plan, \d+ % of what memory could give$", done.stderr, re.MULTILINE)
