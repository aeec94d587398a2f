"""How much experts are used lately."""

import numpy as np
import pytest

from gguf_moe.experts.use import HALF_LIFE, ExpertUse


def test_shares_are_those_of_the_choices():
    use = ExpertUse([1, 3], 4)
    assert use.shares() == [[0.0] * 4] * 2
    use.add([np.array([[0, 1], [0, 2]]), np.array([[3, 2], [3, 2]])])
    assert use.shares() == [[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.5, 0.5]]


def test_what_was_long_ago_fades():
    use = ExpertUse([0], 2)
    use.add([np.zeros((HALF_LIFE, 1), np.int32)])
    use.add([np.ones((HALF_LIFE, 1), np.int32)])
    assert use.shares()[0] == pytest.approx([1 / 3, 2 / 3], abs=1e-4)


def test_a_model_without_experts_has_nothing_to_show():
    use = ExpertUse([], 0)
    use.add([])
    assert use.shares() == []
