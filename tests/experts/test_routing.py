"""Routing traces in files."""

import contextlib
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from gguf_moe.errors import GGUFMoeError, OptionError
from gguf_moe.experts import routing
from gguf_moe.experts.routing import FORMAT, Recorder, Replay, Routing, load_routing, save_routing


def ids(n_expert=8):
    return np.random.default_rng(1).integers(0, n_expert, (5, 3, 2))


def write(path, arrays, header=None):
    header = {"format": FORMAT, "n_expert": 8, "about": {}} if header is None else header
    np.savez_compressed(path, metadata=np.array(json.dumps(header)), **arrays)
    return path


@pytest.mark.parametrize(("n_expert", "dtype"), [(8, np.uint8), (256, np.uint8), (512, np.uint16)])
def test_saved_and_loaded(tmp_path, n_expert, dtype):
    path = tmp_path / "trace"  # savez adds no suffix to an open file
    save_routing(path, Routing(ids(n_expert), n_expert, {"model": "m"}))
    found = load_routing(path)
    assert (found.ids == ids(n_expert)).all()
    assert found.ids.dtype == dtype
    assert (found.n_expert, found.about) == (n_expert, {"model": "m"})


def test_a_replay_goes_on_and_begins_again():
    replay = Replay(Routing(ids().astype(np.uint8), 8))
    expected = ids().reshape(5, 6)
    assert replay.take(1).dtype == np.int32
    np.testing.assert_array_equal(replay.take(3), expected[1:4])
    np.testing.assert_array_equal(replay.take(7), expected[[4, 0, 1, 2, 3, 4, 0]])


def test_a_recording_is_a_trace():
    recorder, chosen = Recorder(3, [0, 2], 8, 2), ids()
    for start, end in ((0, 3), (3, 4), (4, 5)):
        recorder.add([chosen[start:end, 0], chosen[start:end, 2]])
    routing = recorder.routing({"model": "m"})
    routing.check("t.npz", 3, 8, 2)
    np.testing.assert_array_equal(routing.ids[:, [0, 2]], chosen[:, [0, 2]])
    assert not routing.ids[:, 1].any()


def test_an_empty_recording_is_refused():
    with pytest.raises(OptionError, match="no routing was recorded"):
        Recorder(3, [0, 2], 8, 2).routing({})


@pytest.mark.parametrize("sizes", [(4, 8, 2), (3, 9, 2), (3, 8, 1)])
def test_only_for_models_of_its_sizes(sizes):
    trace = Routing(ids().astype(np.uint8), 8)
    trace.check("t.npz", 3, 8, 2)
    with pytest.raises(OptionError, match=r"t\.npz: the trace has 3 layers, 2 of 8 experts"):
        trace.check("t.npz", *sizes)


@pytest.mark.parametrize(
    ("arrays", "header", "message"),
    [
        ({"ids": ids().astype(np.uint8) + 8}, None, "uses expert"),
        ({"ids": ids().astype(np.int32)}, None, "must be uint8 or uint16"),
        ({"ids": ids().astype(np.uint8)[0]}, None, "must be uint8 or uint16"),
        ({"ids": np.zeros((0, 3, 2), np.uint8)}, None, "must be uint8 or uint16"),
        ({"ids": ids().astype(np.uint8)}, {"format": "x"}, "not a routing trace of the form"),
        ({"ids": ids().astype(np.uint8)}, {"format": FORMAT, "n_expert": True}, "n_expert is True"),
        ({"ids": ids().astype(np.uint8)}, [], "not a routing trace"),
        ({"other": ids().astype(np.uint8)}, None, "arrays ids and metadata"),
        ({"ids": ids().astype(np.uint8), "more": np.zeros(3)}, None, "arrays ids and metadata"),
        ({"ids": np.array([{}], object)}, None, "damaged"),
    ],
)
def test_wrong_contents(tmp_path, arrays, header, message):
    path = write(tmp_path / "t.npz", arrays, header)
    with pytest.raises(GGUFMoeError, match=message) as error:
        load_routing(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY", pickle.dumps({"ids": 1})])
def test_not_an_archive(tmp_path, data):
    path = tmp_path / "t.npz"
    path.write_bytes(data)
    with pytest.raises(GGUFMoeError, match="not a routing trace"):
        load_routing(path)


def test_any_damage_is_refused_or_harmless(tmp_path):
    path = write(tmp_path / "t.npz", {"ids": ids().astype(np.uint8)})
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)])
        with contextlib.suppress(GGUFMoeError):
            load_routing(path)


def test_a_size_that_is_not_true_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(routing, "MAX_BYTES", 1 << 16)
    path = write(tmp_path / "t.npz", {"ids": np.zeros((1 << 16, 3, 2), np.uint8)})
    with pytest.raises(GGUFMoeError, match="use a shorter one"):
        load_routing(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 3, 2)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", header.getvalue())
        archive.writestr("metadata.npy", b"")
    with pytest.raises(GGUFMoeError, match="damaged"):
        load_routing(path)


def test_no_such_file(tmp_path):
    with pytest.raises(GGUFMoeError, match="cannot be read"):
        load_routing(tmp_path / "missing.npz")
