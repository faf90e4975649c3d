"""Checks of the arguments of :func:`~cascadebert.choose_thresholds`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.confidence import Floats
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.plain import plain_number
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError

_SUM_TOLERANCE = 1e-3


def checked_targets(target: Target | Sequence[Target]) -> tuple[Target, ...]:
    """One target or several, as a tuple.

    Args:
        target: is a target, or a sequence of targets.

    Raises:
        InputError: the sequence is empty or contains something else.

    >>> from cascadebert import MaxDrop
    >>> checked_targets(MaxDrop(0.01))
    (MaxDrop(value=0.01),)
    """
    targets = tuple(target) if isinstance(target, Sequence) else (target,)
    if not targets:
        raise InputError("there is no target; give at least one")
    for one in targets:
        if isinstance(one, type) or not hasattr(one, "broken_p_value"):
            raise InputError(f"{one!r} is not a target; give MaxDrop(0.01) or the like")
    return targets


def refuse_unfit(targets: Sequence[Target], stages: int, names: Sequence[str]) -> None:
    """Refuse targets that do not fit the classes.

    Args:
        targets: are to be checked.
        stages: counts the stages.
        names: names the classes.

    Raises:
        InputError: a target's label is unknown, or it is not for so many classes.

    >>> from cascadebert import MinRecall
    >>> refuse_unfit([MinRecall("spam", 0.9)], stages=2, names=["ham", "spam"])
    """
    answers = np.zeros((stages, 1), dtype=np.int64)
    one_row = HeldOut(answers, answers[0], np.ones((1, stages)), names)
    for target in targets:
        target.tables(one_row)


def checked_seed(seed: int) -> int:
    """A seed as a Python int.

    Args:
        seed: is an integer from 0 up.

    Raises:
        InputError: it is not.

    >>> checked_seed(np.int64(3))
    3
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"a seed of {seed!r} is not an integer from 0 up; give 0, 1, ...")
    return int(seed)


def checked_groups(groups: ArrayLike, rows: int) -> NDArray[np.int64]:
    """The number of each row's group, int64 of shape (rows,).

    Args:
        groups: names the group of each row, shape (rows,).
        rows: counts the rows.

    Raises:
        InputError: the shape differs, or a row has no group.

    >>> checked_groups(["b", "a", "b"], 3).tolist()
    [1, 0, 1]
    """
    names = np.asarray(groups)
    if names.shape != (rows,):
        raise InputError(f"groups have the shape {names.shape} for {rows} rows; give one per row")
    # Tables hold None or NaN where a value is missing.
    missing = [i for i, name in enumerate(names.tolist()) if name is None or name != name]
    if missing:
        raise InputError(
            f"row {missing[0]}: its group is {names[missing[0]]}; name the group, with a "
            "name of its own if the row depends on no other"
        )
    _, numbers = np.unique(names, return_inverse=True)
    return numbers.astype(np.int64)


def refuse_confidence(confidence: float | None) -> None:
    """Refuse an invalid confidence.

    Args:
        confidence: is the probability, or None for no certificate.

    Raises:
        InputError: it is not a number between 0 and 1.

    >>> refuse_confidence(0.95)
    """
    if confidence is not None and not 0 < plain_number(confidence, "the confidence") < 1:
        raise InputError(
            f"a confidence of {confidence} is not between 0 and 1; 0.95 means 95 %, None (on the "
            "command line 0) asks for no certificate"
        )


def checked_logits(stages: Sequence[ArrayLike], are_logits: bool) -> list[Floats]:
    """One array (rows, classes) per stage, as float64 logits; probabilities become logarithms.

    Args:
        stages: holds one array (rows, classes) per stage.
        are_logits: says that the arrays hold logits, not probabilities.

    Raises:
        InputError: there are no stages or rows, shapes differ, or values are invalid.

    >>> checked_logits([[[0.5, 0.5]]], are_logits=False)[0].round(2).tolist()
    [[-0.69, -0.69]]
    """
    what = "logits" if are_logits else "probabilities"
    try:
        arrays = [np.asarray(values, dtype=np.float64) for values in stages]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are not numbers ({error}); give (rows, classes)") from None
    if not arrays:
        raise InputError(f"no stages: give one array of {what} per stage")
    for number, values in enumerate(arrays, start=1):
        if values.ndim != 2 or values.shape != arrays[0].shape or values.shape[1] < 2:
            raise InputError(
                f"stage {number}: {what} have shape {values.shape}, stage 1 has "
                f"{arrays[0].shape}; give (rows, classes) with two classes or more, the same for "
                "every stage"
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

    Args:
        labels: holds the class index of each row.
        rows: counts the rows.
        classes: counts the classes.

    Raises:
        InputError: the shape differs, or a value is not an integer from 0 to ``classes - 1``.

    >>> checked_labels([0, 1], rows=2, classes=2).tolist()
    [0, 1]
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

    Args:
        costs: holds the cost per row of each stage, shape (stages,), or the whole table.
        rows: counts the rows.
        stages: counts the stages.

    Raises:
        InputError: the shape differs, or a cost is not positive and finite.

    >>> checked_costs([1, 10], rows=2, stages=2).tolist()
    [[1.0, 10.0], [1.0, 10.0]]
    """
    try:
        table = np.asarray(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"costs are not numbers ({error}); give one per stage") from None
    if table.shape not in ((stages,), (rows, stages)):
        raise InputError(f"costs have shape {table.shape}; give ({stages},) or ({rows}, {stages})")
    usable = np.isfinite(table) & (table > 0)
    if not usable.all():
        stage = int(np.argwhere(~usable)[0][-1])
        raise InputError(
            f"stage {stage + 1}: a cost of {table[~usable][0]} is not positive and finite; give "
            "the cost per row"
        )
    return np.broadcast_to(table, (rows, stages))
