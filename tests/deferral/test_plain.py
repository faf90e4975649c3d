"""NumPy scalars become plain Python values where targets, thresholds and calibrations are made."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from cascadebert import (
    MaxDrop,
    MaxErrorWhenAnswering,
    MaxSecondsPerRow,
    MinAccuracy,
    MinMatthews,
    MinRecall,
    Speedup,
)
from cascadebert.deferral.calibration import Isotonic, Temperature, VectorScaling
from cascadebert.deferral.routing import Thresholds
from cascadebert.errors import InputError

HALF = np.float32(0.5)
MADE_OF_SCALARS: list[Any] = [
    MaxDrop(HALF),
    MinAccuracy(np.float64(0.5)),
    MinMatthews(np.float16(0.5)),
    MinRecall(np.str_("spam"), HALF),
    MinRecall(np.int64(1), HALF),
    MaxErrorWhenAnswering(HALF, HALF),
    Speedup(np.int64(1)),
    MaxSecondsPerRow(HALF),
    Thresholds((HALF, np.int64(1)), (HALF,), HALF),
    Temperature(HALF),
    VectorScaling(np.ones(2, dtype=np.float32), [HALF, HALF]),  # type: ignore[arg-type]
    Isotonic(([HALF],), np.ones((1, 1))),  # type: ignore[arg-type]
]


def leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


@pytest.mark.parametrize("made", MADE_OF_SCALARS, ids=lambda made: type(made).__name__)
def test_scalars_become_python_numbers(made: Any) -> None:
    types = {type(leaf) for value in vars(made).values() for leaf in leaves(value)}
    assert types <= {float, int, str}
    json.dumps(asdict(made))
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert again == made
        assert hash(again) == hash(made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxDrop("0.1"), "MaxDrop: the value is '0.1', which is not a number"),
        (lambda: MaxDrop(True), "MaxDrop: the value is True"),
        (lambda: Speedup(None), "Speedup: the value is None"),
        (lambda: MinAccuracy(np.bool_(True)), "MinAccuracy: the value is"),
        (lambda: MaxErrorWhenAnswering(0.1, "0"), "the coverage drop is '0'"),
        (lambda: MinRecall(1.5, 0.5), r"MinRecall: the label is 1\.5"),
        (lambda: MinRecall(True, 0.5), "MinRecall: the label is True"),
        (lambda: Thresholds(("high",)), "a threshold is 'high'"),
        (lambda: Thresholds((True,)), "a threshold is True"),
        (lambda: Temperature("2"), "the calibration's temperature is '2'"),
        (lambda: VectorScaling("12", (0.0, 0.0)), "the calibration's scale is '12'"),
    ],
)
def test_what_is_not_a_number_or_label_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
