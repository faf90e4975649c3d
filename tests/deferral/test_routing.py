"""Accounting, against the numbers of the published run and by properties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadebert.deferral.routing import Thresholds, path_costs, speedup
from cascadebert.errors import InputError

# The authors' run on the 408 rows of MRPC dev, 2 and 12 layers: rows that exit at stage 1
# and the speed-up that they print.
PUBLISHED = [(377, 4.121), (349, 3.213), (321, 2.632), (284, 2.125)]


def up_to(stage: Sequence[int] | np.ndarray, stages: int) -> np.ndarray:
    """All stages up to the one where each row exits."""
    return np.arange(1, stages + 1) <= np.asarray(stage)[:, None]


@pytest.mark.parametrize(("exits", "printed"), PUBLISHED)
def test_published_speedups(exits: int, printed: float) -> None:
    stage = np.repeat([1, 2], [exits, 408 - exits])
    assert round(speedup(up_to(stage, 2), [2, 12]), 3) == printed


def test_range_of_the_published_pair() -> None:
    assert speedup([[True, True]] * 10, [2, 12]) == pytest.approx(0.857, abs=5e-4)
    assert speedup([[True, False]] * 10, [2, 12]) == 6.0


def test_stage_that_is_not_passed_costs_nothing() -> None:
    assert Thresholds((1.0, 0.3)).runs.tolist() == [False, True, True]
    passed = [[False, True, False], [False, True, True], [True, False, True]]
    assert path_costs(passed, [1, 10, 100]).tolist() == [10, 110, 101]
    assert speedup([[False, True]] * 5, [2, 12]) == 1.0


def test_costs_of_each_row() -> None:
    costs = [[1, 10], [2, 20], [3, 30]]
    assert path_costs(up_to([1, 2, 2], 2), costs).tolist() == [1, 22, 33]
    assert speedup(up_to([1, 2, 2], 2), costs) == pytest.approx(60 / 56)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=40),
    st.lists(st.floats(0.1, 100), min_size=4, max_size=4),
)
def test_cost_is_the_sum_of_the_stages_passed(stage: list[int], costs: list[float]) -> None:
    expected = [sum(costs[:s]) for s in stage]
    passed = up_to(stage, 4)
    np.testing.assert_allclose(path_costs(passed, costs), expected)
    assert speedup(passed, costs) == pytest.approx(len(stage) * costs[-1] / sum(expected))


def test_no_rows() -> None:
    with pytest.raises(InputError, match="no rows"):
        speedup(np.empty((0, 2)), [1, 2])
