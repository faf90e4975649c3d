"""What is promised about rows that nobody has seen yet, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cascadebert.deferral.certificates.shift import Seen
from cascadebert.deferral.targets import Target, target_of

CERTIFIED, NOT_CERTIFIED, DO_NOT_CASCADE = "certified", "not certified", "do not cascade"
ESTIMATED = "estimated"
VERDICTS = (CERTIFIED, NOT_CERTIFIED, DO_NOT_CASCADE, ESTIMATED)


@dataclass(frozen=True)
class Promise:
    """One target, and what was seen of it.

    Attributes:
        target: its kind.
        value: the number in it.
        label: the label that it is about, if it is about one.
        words: all that in words.
        observed: what it is about, as seen in the rows that the figures are of; None where no row
            tells.
        p_value: of the chosen thresholds; 0 where they keep the promise by what they are; None
            where nothing was tested.
    """

    target: str
    value: float
    label: str | None
    words: str
    observed: float | None
    p_value: float | None

    def to_target(self) -> Target:
        return target_of(self.target, self.value, self.label)

    def seen_in_words(self) -> str:
        """What was seen of it, with its p-value."""
        seen = "unknown" if self.observed is None else f"{self.observed:.4f}"
        test = "" if self.p_value is None else f" (p = {self.p_value:.2g})"
        return f"{self.to_target().quantity} was {seen}{test}"


@dataclass(frozen=True)
class Certificate:
    """What is promised of a cascade, on what grounds, and what it is worth.

    Attributes:
        verdict: "certified"; "not certified", then the thresholds are the safe ones; "do not
            cascade", where no thresholds that keep the promise are cheaper than a single stage; or
            "estimated", where no promise was asked for.
        confidence: 1 minus the chance that a promise is made and does not hold; None where none
            was asked for.
        promises: the targets, which hold all together.
        rows_proposing, rows_certifying: held-out rows for either. With a single threshold to
            choose all rows can certify. The figures below are of the rows that certify; without a
            promise of all rows, which chose the thresholds themselves.
        more_rows: about how many more held-out rows would have certified the thresholds that the
            proposing rows found best; None where there is no need, or where no number would do.
        score: name of the confidence score.
        thresholds, skip_thresholds, abstain_threshold: see
            :class:`~cascadebert.deferral.routing.Thresholds`.
        accuracy, reference_accuracy: of the cascade and of the last stage alone; where no target
            needs labels, the agreement with the last stage, and 1.
        cost, reference_cost: mean of a row, in the unit ``cost_unit``, if that is known.
        exit_fractions: share of the rows that each stage answers.
        abstained: share of the rows that get no answer.
        grouped: whether rows came in groups; then one row of each group certifies.
        unranked_stages: numbers of the stages, from 1, whose confidence was not seen to rank
            right answers above wrong ones.
        paired: whether the rows were pairs of texts, if that is known.
        rows_fingerprint: of the texts of all held-out rows, whatever their order.
        artefact_fingerprint: of all that decides the cascade's answers.
        versions: of the engine and what else decides the answers.
        seen: how the certifying rows went through the cascade, for
            :mod:`cascadebert.deferral.certificates.shift`.
    """

    verdict: str
    confidence: float | None
    promises: tuple[Promise, ...]
    rows_proposing: int
    rows_certifying: int
    more_rows: int | None
    score: str
    thresholds: tuple[float, ...]
    skip_thresholds: tuple[float, ...]
    abstain_threshold: float
    accuracy: float
    reference_accuracy: float
    cost: float
    reference_cost: float
    exit_fractions: tuple[float, ...]
    abstained: float
    grouped: bool = False
    unranked_stages: tuple[int, ...] = ()
    cost_unit: str | None = None
    paired: bool | None = None
    rows_fingerprint: str | None = None
    artefact_fingerprint: str | None = None
    versions: Mapping[str, str] | None = None
    seen: Seen | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """A certificate out of what :func:`dataclasses.asdict` made of it, tuples or lists.

        Raises:
            TypeError, KeyError, ValueError: it is not one.
        """
        lists = ("thresholds", "skip_thresholds", "exit_fractions", "unranked_stages")
        certificate = cls(
            **{
                **values,
                **{name: tuple(values[name]) for name in lists},
                "promises": tuple(Promise(**promise) for promise in values["promises"]),
                "seen": values.get("seen") and Seen.from_dict(values["seen"]),
            }
        )
        if certificate.verdict not in VERDICTS:
            raise ValueError(f"verdict is {certificate.verdict!r}")
        for promise in certificate.promises:
            promise.to_target()
        return certificate

    @property
    def certified(self) -> bool:
        return self.verdict == CERTIFIED

    @property
    def speedup(self) -> float:
        """Cost of the last stage alone over the cost of the cascade."""
        return self.reference_cost / self.cost

    @property
    def accuracy_drop(self) -> float:
        return self.reference_accuracy - self.accuracy

    def words(self) -> str:
        """The certificate as prose: what is promised, on what grounds, and for what rows."""
        wanted = " and ".join(promise.words for promise in self.promises)
        parts = [self._verdict_in_words(wanted)]
        if self.verdict != NOT_CERTIFIED:
            parts.append(self._observed_in_words())
        parts.append(self._cost_in_words())
        if self.unranked_stages:
            stages = "stages" if len(self.unranked_stages) > 1 else "stage"
            numbers = ", ".join(map(str, self.unranked_stages))
            parts.append(
                f"The confidence of {stages} {numbers} was not seen to rank right answers above "
                "wrong ones, so there is little to gain from it."
            )
        if self.verdict in (CERTIFIED, DO_NOT_CASCADE):
            parts.append(
                "This holds for rows drawn as the held-out rows were, and for the stages as they "
                "are saved; it does not hold when the rows that come in change."
            )
            if any(promise.target in ("Speedup", "MaxSecondsPerRow") for promise in self.promises):
                parts.append(
                    "It takes for granted that no row costs more than the dearest of these, and "
                    "that the stages are as fast as they were then."
                )
        return " ".join(parts)

    def _verdict_in_words(self, wanted: str) -> str:
        level = f"{self.confidence or 0:.4g}"
        if self.verdict == ESTIMATED:
            return (
                f"Nothing is promised: these thresholds were chosen for {wanted} on the very rows "
                "that the figures are of, so expect a little less of others."
            )
        if self.verdict == CERTIFIED:
            return f"Certified with confidence {level}: these thresholds keep {wanted}."
        if self.verdict == DO_NOT_CASCADE:
            return (
                f"Do not cascade: a single stage is the better buy for {wanted}, and these "
                f"thresholds use it alone; that is certified with confidence {level}."
            )
        untold = [promise.words for promise in self.promises if promise.observed is None]
        if self.more_rows is None:
            hope = "More rows like these would hardly change that; ask for less"
        else:
            hope = f"About {self.more_rows} more held-out rows would do, if they are like these"
        if untold:
            left = f"no thresholds could be shown to keep {wanted}, and the last stage alone is set"
            hope = f"None of the rows says anything of {' or '.join(untold)}; give rows that do"
        elif all(promise.p_value == 0 for promise in self.promises):
            left = (
                f"no thresholds but the last stage alone could be shown to keep {wanted}, so it is "
                "set"
            )
        else:
            left = (
                f"no thresholds could be shown to keep {wanted}; those that come closest are set, "
                "and nothing is promised of them"
            )
        return f"Not certified with confidence {level}: {left}. {hope}."

    def _observed_in_words(self) -> str:
        rows = f"the {self.rows_certifying or self.rows_proposing} rows"
        if self.rows_certifying:
            rows += " that tested them"
        if self.grouped:
            rows += ", one of each group,"
        return f"On {rows} {', '.join(promise.seen_in_words() for promise in self.promises)}."

    def _cost_in_words(self) -> str:
        unit = f" {self.cost_unit}" if self.cost_unit else ""
        text = (
            f"A row costs {self.cost:.3g}{unit} on average, {self.reference_cost:.3g} with the "
            f"last stage alone: a speed-up of {self.speedup:.2f}."
        )
        return text + (f" {self.abstained:.1%} get no answer." if self.abstain_threshold else "")
