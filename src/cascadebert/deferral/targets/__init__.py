"""Targets: what users ask of a cascade.

The search asks a target how far thresholds miss it on the proposing rows. The test asks it for a
p-value on the certifying rows. All targets but one have a loss per row that depends on the stage
where the row ends, and promise that the expected loss is at most 0, so the search adds up tables.
"""

from __future__ import annotations

from collections.abc import Callable

from cascadebert.deferral.targets.answers import (
    MaxDrop,
    MaxErrorWhenAnswering,
    MinAccuracy,
    MinAgreement,
    MinCoverage,
    MinF1,
    MinPrecision,
    MinRecall,
)
from cascadebert.deferral.targets.base import Target
from cascadebert.deferral.targets.cost import MaxSecondsPerRow, Speedup
from cascadebert.deferral.targets.matthews import MinMatthews

__all__ = [
    "MaxDrop",
    "MaxErrorWhenAnswering",
    "MaxSecondsPerRow",
    "MinAccuracy",
    "MinAgreement",
    "MinCoverage",
    "MinF1",
    "MinMatthews",
    "MinPrecision",
    "MinRecall",
    "Speedup",
    "Target",
    "target_of",
]

_KINDS: dict[str, Callable[..., Target]] = {
    kind.__name__: kind
    for kind in (
        MaxDrop,
        MaxErrorWhenAnswering,
        MaxSecondsPerRow,
        MinAccuracy,
        MinAgreement,
        MinCoverage,
        MinF1,
        MinMatthews,
        MinPrecision,
        MinRecall,
        Speedup,
    )
}


def target_of(kind: str, value: float, label: str | None = None) -> Target:
    """The target that a certificate records.

    Args:
        kind: names the class.
        value: is its number.
        label: is its label, if it has one.

    Raises:
        KeyError: the kind is unknown.
        InputError: the value is out of range.

    >>> target_of("MinRecall", 0.9, "spam")
    MinRecall(label='spam', value=0.9)
    """
    return _KINDS[kind](value) if label is None else _KINDS[kind](label, value)
