"""What users ask of a cascade.

Each target says how far thresholds are from it on the rows that propose, for the search, and
tests its promise on the rows that certify. All but one have a loss that each row contributes by
the stage it ends at, with the promise that the expected loss is not above 0; so the search needs to
add up tables only.
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
    """A target by the name of its kind, as certificates have it."""
    return _KINDS[kind](value) if label is None else _KINDS[kind](label, value)
