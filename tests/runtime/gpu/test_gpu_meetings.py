"""scripts/gpu_meetings.py: where the time of a layer goes whose experts GPU and CPU share."""

import gpu_meetings
import numpy as np
import pytest

from gguf_moe_kernels.quants import GGMLType

TOKENS = [3, 141, 59, 26, 5]


def test_a_step_with_clocks_gives_the_same_and_its_parts_add_up(
    hybrid_context, tiny_gguf, tmp_path, library, assert_same_bits, capsys
):
    path = tiny_gguf(tmp_path / "moe.gguf", n_layer=3, qtypes=(GGMLType.Q4_K,))
    with hybrid_context(path, 1) as context:
        expected = context.extend(TOKENS[:1], 1).copy()
        context.truncate(0)
        runner = context._runner
        runner._device.prepare([gpu_meetings.STAMP], None)
        meetings = gpu_meetings.Meetings(context, runner, runner._device, library)
        assert_same_bits(context.extend(TOKENS[:1], 1), expected)
        gpu, crew = meetings.run(TOKENS)
    gpu_meetings.show(meetings.rows, gpu, crew)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["layer", "lacked", "GPU", "there", "all"]
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "all"]
    layers = gpu_meetings.sections(meetings.rows)
    assert gpu.shape == (len(TOKENS), 3, 2)
    assert (np.diff(gpu.reshape(len(TOKENS), -1)) >= 0).all()
    for section, parts in zip(layers, gpu_meetings.parts(gpu, crew, layers), strict=True):
        names = gpu_meetings.columns(meetings.rows, section)
        assert names[3:6] == ("ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu")
        lacked = parts[~np.isnan(parts[:, -1])]
        assert len(lacked)  # the GPU has one of four experts, and two are chosen
        assert lacked.shape[1] == len(names)
        assert (lacked[:, 2:-2] >= 0).all()
        assert ((lacked[:, -1] > 0) & (lacked[:, -1] < 1)).all()


def test_both_clocks_are_put_together_by_the_shortest_ways():
    """One thread, two layers, 1000 us between the clocks; the second layer lacks no expert for one token."""
    gpu = np.array([[[10.0, 30.0], [50.0, 90.0]]] * 2)
    crew = np.full((2, 2 * 3, 1, 3), np.nan)
    for token, layer in ((0, 0), (0, 1), (1, 0)):
        post, end = gpu[token, layer] + 1000
        crew[token, 3 * layer : 3 * layer + 3, 0, :2] = [
            [0, post + 4],
            [post + 5, end - 9],
            [end - 8, end - 2],
        ]
        crew[token, 3 * layer + 1, 0, 2] = 3
    found = gpu_meetings.parts(gpu, crew, [range(3), range(3, 6)])
    assert found[0][0].tolist() == pytest.approx([np.nan, 3, 0, 7, 7, 3, 1 - 3 / 14], nan_ok=True)
    assert found[1][0].tolist() == pytest.approx([20, 3, 0, 27, 7, 3, 1 - 3 / 34])
    assert np.isnan(found[1][1]).all()
