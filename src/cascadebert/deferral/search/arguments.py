"""The arrays that people bring to :func:`~cascadebert.choose_thresholds`, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError

_SUM_TOLERANCE = 1e-3


def checked_targets(target: Target | Sequence[Target]) -> tuple[Target, ...]:
    """One target or several, as a tuple.

    Raises:
        InputError: none, or something that is no target.
    """
    targets = tuple(target) if isinstance(target, Sequence) else (target,)
    if not targets:
        raise InputError("no target: name at least one")
    for one in targets:
        if isinstance(one, type) or not hasattr(one, "broken_p_value"):
            raise InputError(f"{one!r} is not a target; give MaxDrop(0.01) or the like")
    return targets


def refuse_unfit(targets: Sequence[Target], stages: int, names: Sequence[str]) -> None:
    """Refuse targets about a label, or a number of classes, that there is not.

    Raises:
        InputError: see the targets.
    """
    answers = np.zeros((stages, 1), dtype=np.int64)
    one_row = HeldOut(answers, answers[0], np.ones((1, stages)), names)
    for target in targets:
        target.tables(one_row)


def checked_seed(seed: int) -> int:
    """A seed for the random draws.

    Raises:
        InputError: not a whole number from 0 up.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"a seed of {seed!r} is not a whole number from 0 up")
    return int(seed)


def checked_groups(groups: ArrayLike, rows: int) -> NDArray[np.int64]:
    """A number for each row, the same for rows of one group, int64 of shape (rows,).

    Raises:
        InputError: another shape, or a row without a group.
    """
    names = np.asarray(groups)
    if names.shape != (rows,):
        raise InputError(f"groups have the shape {names.shape} for {rows} rows; give one a row")
    # None and NaN: what tables have where nothing is known.
    missing = [i for i, name in enumerate(names.tolist()) if name is None or name != name]
    if missing:
        raise InputError(
            f"row {missing[0]}: its group is {names[missing[0]]}; name it, rows that depend on "
            "no other by a name of their own"
        )
    _, numbers = np.unique(names, return_inverse=True)
    return numbers.astype(np.int64)


def refuse_confidence(confidence: float | None) -> None:
    """Refuse a confidence that cannot be had.

    Raises:
        InputError: not between 0 and 1.
    """
    if confidence is not None and not 0 < confidence < 1:
        raise InputError(
            f"a confidence of {confidence} is not between 0 and 1; 0.95 means 95 %, None (on the "
            "command line 0) asks for no promise"
        )


def checked_logits(stages: Sequence[ArrayLike], are_logits: bool) -> list[Floats]:
    """One array (rows, classes) a stage, as logits; probabilities become their logarithms.

    Raises:
        InputError: no stages or rows, shapes that differ, values that are not what they should be.
    """
    what = "logits" if are_logits else "probabilities"
    try:
        arrays = [np.asarray(values, dtype=np.float64) for values in stages]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are not numbers ({error}); give (rows, classes)") from None
    if not arrays:
        raise InputError(f"no stages: give one array of {what} a stage")
    for number, values in enumerate(arrays, start=1):
        if values.ndim != 2 or values.shape != arrays[0].shape or values.shape[1] < 2:
            raise InputError(
                f"stage {number}: {what} have shape {values.shape}, stage 1 has "
                f"{arrays[0].shape}; give (rows, classes), two classes or more, alike for every "
                "stage"
            )
        if not len(values):
            raise InputError(f"stage {number}: {what} have shape {values.shape}: there are no rows")
        if are_logits:
            usable = np.isfinite(values).all(axis=1)
            remedy = "give finite numbers"
        else:
            usable = (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < _SUM_TOLERANCE)
            remedy = "give softmax outputs, which are not negative and sum to 1"
        if not usable.all():
            bad = int(np.flatnonzero(~usable)[0])
            raise InputError(f"stage {number}, row {bad}: {values[bad]} are not {what}; {remedy}")
    if are_logits:
        return arrays
    with np.errstate(divide="ignore"):
        return [np.log(values) for values in arrays]


def checked_labels(labels: ArrayLike, rows: int, classes: int) -> NDArray[np.int64]:
    """Class indices, int64 of shape (rows,).

    Raises:
        InputError: another shape, no integers, or not from 0 to ``classes - 1``.
    """
    truth = np.asarray(labels)
    if truth.shape != (rows,) or not np.issubdtype(truth.dtype, np.integer):
        raise InputError(
            f"labels are {truth.dtype} of shape {truth.shape}; give {rows} integers, the index of "
            "each row's class"
        )
    if truth.min() < 0 or truth.max() >= classes:
        raise InputError(
            f"labels run from {truth.min()} to {truth.max()}; "
            f"give class indices, 0 to {classes - 1}"
        )
    return truth.astype(np.int64)


def checked_costs(costs: ArrayLike, rows: int, stages: int) -> Floats:
    """Cost of each row in each stage, float64 of shape (rows, stages).

    Raises:
        InputError: another shape, or not all positive and finite.
    """
    try:
        table = np.asarray(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"costs are not numbers ({error}); give one a stage") from None
    if table.shape not in ((stages,), (rows, stages)):
        raise InputError(f"costs have shape {table.shape}; give ({stages},) or ({rows}, {stages})")
    usable = np.isfinite(table) & (table > 0)
    if not usable.all():
        stage = int(np.argwhere(~usable)[0][-1])
        raise InputError(
            f"stage {stage + 1}: a cost of {table[~usable][0]} is not positive and finite; give "
            "what a row costs there"
        )
    return np.broadcast_to(table, (rows, stages))
