import json

import pytest

from gguf_moe.errors import GGUFMoeError
from gguf_moe.experts.cache import Cache
from gguf_moe.experts.heat import HeatOwner, load_heat, save_heat

OWNER = HeatOwner("llama", "tiny", 2, 4)


def test_a_warm_start_has_the_hot_experts(tmp_path):
    cache = Cache(2, 4, [2, 2])
    for _ in range(20):
        for upload in cache.used([[0, 3], [1, 2]]):
            cache.commit(upload)
    save_heat(tmp_path / "heat.json", cache.heat(), OWNER)
    warm = Cache(2, 4, [2, 2])
    warm.warm(load_heat(tmp_path / "heat.json", OWNER))
    while uploads := warm.refill():
        for upload in uploads:
            warm.commit(upload)
    residents = [[ie for ie in range(4) if warm.slot_of(il, ie) is not None] for il in range(2)]
    assert residents == [[0, 3], [1, 2]]
    assert [p.name for p in tmp_path.iterdir()] == ["heat.json"]


@pytest.mark.parametrize(
    "heat", [None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4], [1, 2, 3]], [[1, 2, 3, 4], [1, 2, 3, "4"]]]
)
def test_a_table_of_another_shape(tmp_path, heat):
    path = tmp_path / "heat.json"
    save_heat(path, [[1.0] * 4] * 2, OWNER)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heat": heat}))
    with pytest.raises(GGUFMoeError, match="must be 2 lists of 4 numbers"):
        load_heat(path, OWNER)


@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity", "1e300", "true"])
def test_a_number_that_is_no_heat(tmp_path, value):
    path = tmp_path / "heat.json"
    save_heat(path, [[7.0] * 4] * 2, OWNER)
    path.write_text(path.read_text().replace("7.0", value, 1))
    with pytest.raises(GGUFMoeError, match="must be 2 lists"):
        load_heat(path, OWNER)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"format": "x"}'])
def test_a_file_that_is_something_else(tmp_path, text):
    path = tmp_path / "heat.json"
    path.write_text(text)
    with pytest.raises(GGUFMoeError, match="not a file of heat"):
        load_heat(path, OWNER)


def test_another_model(tmp_path):
    save_heat(tmp_path / "heat.json", [[1.0] * 4] * 2, OWNER)
    with pytest.raises(GGUFMoeError, match="'tiny', not 'other'"):
        load_heat(tmp_path / "heat.json", HeatOwner("llama", "other", 2, 4))


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(GGUFMoeError, match="cannot be saved"):
        save_heat(tmp_path / "no" / "heat.json", [[1.0] * 4] * 2, OWNER)
    with pytest.raises(GGUFMoeError, match="cannot be read"):
        load_heat(tmp_path / "none.json", OWNER)
