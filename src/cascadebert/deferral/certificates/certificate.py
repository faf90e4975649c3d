"""Certificates: promises about unseen rows, and their confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cascadebert.deferral.certificates.shift import RoutingSummary
from cascadebert.deferral.targets import Target, target_of

CERTIFIED, NOT_CERTIFIED, DO_NOT_CASCADE = "certified", "not certified", "do not cascade"
ESTIMATED = "estimated"
VERDICTS = (CERTIFIED, NOT_CERTIFIED, DO_NOT_CASCADE, ESTIMATED)


@dataclass(frozen=True)
class Promise:
    """One target, and what was observed of it.

    Attributes:
        target: name of its class.
        value: its limit.
        label: its label, if it has one.
        words: the target in words.
        observed: its quantity on the rows of the figures; None where it is undefined.
        p_value: of the chosen thresholds; 0 where they keep the promise by definition; None where
            nothing was tested.

    >>> words = str(target_of("MaxDrop", 0.01))
    >>> Promise("MaxDrop", 0.01, None, words, observed=0.004, p_value=0.02).observed_words()
    'the drop in accuracy was 0.0040 (p = 0.02)'
    """

    target: str
    value: float
    label: str | None
    words: str
    observed: float | None
    p_value: float | None

    def to_target(self) -> Target:
        """The target, made again.

        Raises:
            KeyError: its class is unknown.
            InputError: its value is out of range.
        """
        return target_of(self.target, self.value, self.label)

    def observed_words(self) -> str:
        """The observed quantity in words, with the p-value."""
        observed = "unknown" if self.observed is None else f"{self.observed:.4f}"
        test = "" if self.p_value is None else f" (p = {self.p_value:.2g})"
        return f"{self.to_target().quantity} was {observed}{test}"


@dataclass(frozen=True)
class Certificate:
    """What a cascade promises, the evidence for it, and the figures.

    Of 100 cascades tuned with a confidence of 0.95, at most about 5 break their promise.

    Attributes:
        verdict: "certified"; "not certified", where the thresholds that come closest are set, or
            the last stage alone if it keeps the promises by definition; "do not cascade", where a
            single stage is the better buy; or "estimated", where no certificate was asked for.
        confidence: 1 minus the probability of certifying a promise that is broken; None where no
            certificate was asked for.
        promises: one per target; they hold all at once.
        rows_proposing, rows_certifying: counts of held-out rows. To choose a single threshold no
            row need propose. The figures below are of the certifying rows; where nothing is
            certified they are of all rows, which also chose the thresholds.
        more_rows: estimate of how many more held-out rows would certify the thresholds that the
            proposing rows found best; None where none are needed or no number is enough.
        score: name of the confidence score.
        thresholds, skip_thresholds, abstain_threshold: see
            :class:`~cascadebert.deferral.routing.Thresholds`.
        accuracy, reference_accuracy: of the cascade and of the last stage alone; where no target
            needs labels, the agreement with the last stage, and 1.
        cost, reference_cost: mean per row, in ``cost_unit``, if that is known.
        exit_fractions: share of the rows that each stage answers.
        abstained: share of the rows without an answer.
        grouped: whether the rows came in groups; then one row per group certifies.
        unranked_stages: numbers of the stages, from 1, whose confidence does not significantly rank
            right answers above wrong ones.
        paired: whether the rows were pairs of texts, if that is known.
        rows_fingerprint: hash of the texts of all held-out rows, in any order.
        artefact_fingerprint: hash of everything that decides the answers of the cascade.
        versions: of the engine and whatever else decides the answers.
        seen: counts of how the certifying rows went through the cascade, for
            :mod:`cascadebert.deferral.certificates.shift`.

    >>> import cascadebert
    >>> first, last, labels = [[0.9, 0.1]] * 200, [[0.8, 0.2]] * 200, [0] * 200
    >>> target = cascadebert.MaxDrop(0.05)
    >>> policy = cascadebert.choose_thresholds([first, last], labels, [1, 10], target)
    >>> policy.certificate.verdict, policy.certificate.speedup
    ('do not cascade', 10.0)
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
    seen: RoutingSummary | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """A certificate from the output of :func:`dataclasses.asdict`, with tuples or lists.

        Args:
            values: holds the fields.

        Raises:
            TypeError, KeyError, ValueError, InputError: a field is missing, unknown or invalid.
        """
        lists = ("thresholds", "skip_thresholds", "exit_fractions", "unranked_stages")
        certificate = cls(
            **{
                **values,
                **{name: tuple(values[name]) for name in lists},
                "promises": tuple(Promise(**promise) for promise in values["promises"]),
                "seen": values.get("seen") and RoutingSummary.from_dict(values["seen"]),
            }
        )
        if certificate.verdict not in VERDICTS:
            raise ValueError(
                f"verdict is {certificate.verdict!r}, not one of {', '.join(VERDICTS)}"
            )
        for promise in certificate.promises:
            promise.to_target()
        return certificate

    @property
    def certified(self) -> bool:
        """Whether the verdict is "certified"."""
        return self.verdict == CERTIFIED

    @property
    def speedup(self) -> float:
        """Cost of the last stage alone over the cost of the cascade."""
        return self.reference_cost / self.cost

    @property
    def accuracy_drop(self) -> float:
        """Accuracy of the last stage alone minus that of the cascade."""
        return self.reference_accuracy - self.accuracy

    def words(self) -> str:
        """The certificate as prose: the promise, the evidence, and the rows it holds for."""
        wanted = " and ".join(promise.words for promise in self.promises)
        parts = [self._verdict_in_words(wanted)]
        if self.verdict != NOT_CERTIFIED:
            parts.append(self._observed_in_words())
        parts.append(self._cost_in_words())
        if self.unranked_stages:
            stages = "stages" if len(self.unranked_stages) > 1 else "stage"
            numbers = ", ".join(map(str, self.unranked_stages))
            parts.append(
                f"The confidence of {stages} {numbers} does not significantly rank right answers "
                "above wrong ones, so there is little to gain from it."
            )
        if self.verdict in (CERTIFIED, DO_NOT_CASCADE):
            parts.append(
                "This holds for rows from the same distribution as the held-out rows, and for the "
                "stages as saved; it no longer holds when the incoming rows change."
            )
            if any(promise.target in ("Speedup", "MaxSecondsPerRow") for promise in self.promises):
                parts.append(
                    "It assumes that no row costs more than the most expensive of these, and that "
                    "the stages stay as fast."
                )
        return " ".join(parts)

    def _verdict_in_words(self, wanted: str) -> str:
        level = f"{self.confidence or 0:.4g}"
        if self.verdict == ESTIMATED:
            return (
                f"Nothing is promised: these thresholds were chosen for {wanted} on the same rows "
                "as the figures, so expect slightly worse on other rows."
            )
        if self.verdict == CERTIFIED:
            return f"Certified with confidence {level}: these thresholds keep {wanted}."
        if self.verdict == DO_NOT_CASCADE:
            return (
                f"Do not cascade: a single stage is the better buy for {wanted}, and these "
                f"thresholds use it alone, certified with confidence {level}."
            )
        undefined = [promise.words for promise in self.promises if promise.observed is None]
        if self.more_rows is None:
            remedy = "More rows like these would hardly change that; ask for less"
        else:
            remedy = f"About {self.more_rows} more held-out rows like these would be enough"
        if undefined:
            outcome = f"no thresholds were shown to keep {wanted}, so the last stage alone is set"
            remedy = (
                f"None of the rows says anything about {' or '.join(undefined)}; give rows that do"
            )
        elif all(promise.p_value == 0 for promise in self.promises):
            outcome = f"only the last stage alone was shown to keep {wanted}, so it is set"
        else:
            outcome = (
                f"no thresholds were shown to keep {wanted}; those that come closest are set, "
                "without a promise"
            )
        return f"Not certified with confidence {level}: {outcome}. {remedy}."

    def _observed_in_words(self) -> str:
        rows = f"the {self.rows_certifying or self.rows_proposing} rows"
        if self.rows_certifying:
            rows += " that tested them"
        if self.grouped:
            rows += ", one per group,"
        return f"On {rows} {', '.join(promise.observed_words() for promise in self.promises)}."

    def _cost_in_words(self) -> str:
        unit = f" {self.cost_unit}" if self.cost_unit else ""
        text = (
            f"The mean cost per row is {self.cost:.3g}{unit}, {self.reference_cost:.3g} with the "
            f"last stage alone: a speed-up of {self.speedup:.2f}."
        )
        return text + (f" {self.abstained:.1%} get no answer." if self.abstain_threshold else "")
