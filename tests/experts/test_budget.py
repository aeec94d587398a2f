import pytest

from gguf_moe.errors import OptionError
from gguf_moe.experts.budget import default_context, free_budget, parse_vram, slot_size, slots_per_layer

TOTAL = 24 * 10**9


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("12G", 12 * 10**9),
        ("8000M", 8 * 10**9),
        ("12GiB", 12 << 30),
        ("0.5", 12 * 10**9),
        ("1.5 gb", 15 * 10**8),
    ],
)
def test_vram(text, nbytes):
    assert parse_vram(text, TOTAL) == nbytes


@pytest.mark.parametrize("text", ["", "12", "-3G", "0", "G", "1e9", "12GX", "nan", "0.0G"])
def test_vram_that_is_not_an_amount(text):
    with pytest.raises(OptionError, match="must be as 12G"):
        parse_vram(text, TOTAL)


def test_more_vram_than_there_is():
    with pytest.raises(OptionError, match=r"this GPU has 24\.0G"):
        parse_vram("25G", TOTAL)


def test_slots_fill_the_budget_evenly():
    assert slots_per_layer(1000, [100, 0, 100], 8) == [5, 0, 5]
    assert slots_per_layer(1150, [100, 0, 100], 8) == [6, 0, 5]
    assert slots_per_layer(10**6, [100, 0, 100], 8) == [8, 0, 8]
    assert slots_per_layer(-5, [100, 0, 100], 8) == [0, 0, 0]


def test_a_slot_has_aligned_parts():
    assert slot_size([256, 257, 1]) == 256 + 512 + 256


def test_the_default_context_is_bounded_by_its_share():
    assert default_context(10**12, 1000, 32768) == 8192
    assert default_context(10**12, 1000, 4096) == 4096
    assert default_context(20_000_000, 1000, 32768) == 2816
    assert default_context(0, 1000, 32768) == 256


def test_free_memory_is_not_taken_whole():
    assert free_budget(10 << 30) == (10 << 30) - (512 << 20)
    assert free_budget(1) == 0
