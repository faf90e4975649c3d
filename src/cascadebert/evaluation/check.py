"""Whether a cascade's certificate still holds: for what is saved, and for fresh rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cascadebert.cascade import Cascade
from cascadebert.deferral.certificates.certificate import ESTIMATED, NOT_CERTIFIED, Promise
from cascadebert.deferral.certificates.fixed_sequence import one_of_each
from cascadebert.deferral.certificates.shift import Shift, shift_p_value, shifts
from cascadebert.deferral.search.arguments import checked_seed
from cascadebert.deferral.search.policy import observed, p_values
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError
from cascadebert.rows.rows import as_rows

DEFAULT_LEVEL = 0.05


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        passed: whether it passed.
        detail: the reason, in a sentence.
    """

    what: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class PromiseCheck:
    """One promise tested on fresh rows.

    Attributes:
        promise: the promise of the certificate.
        observed: the promised quantity on the fresh rows; None where it is not defined on them.
        broken_p_value: p-value of the null hypothesis that the promise holds.
        kept_p_value: p-value of the null hypothesis that it does not hold.
    """

    promise: Promise
    observed: float | None
    broken_p_value: float
    kept_p_value: float


@dataclass(frozen=True)
class RowsCheck:
    """A certificate tested on fresh rows.

    Attributes:
        rows: number of fresh rows.
        level: probability of a false alarm in any of the tests.
        promises: the result for each promise.
        shifts: each comparison with the certificate's own rows.
        shift_p_value: p-value of all comparisons together.
    """

    rows: int
    level: float
    promises: tuple[PromiseCheck, ...]
    shifts: tuple[Shift, ...]
    shift_p_value: float

    def findings(self) -> list[Finding]:
        """One finding per promise, and one for the shift."""
        # The promises share one half of the level, the shifts have the other.
        level = self.level / 2 / max(len(self.promises), 1)
        found = []
        for check in self.promises:
            broken, kept = check.broken_p_value <= level, check.kept_p_value <= self.level
            seen = "unknown" if check.observed is None else f"{check.observed:.4f}"
            says = "broken" if broken else ("kept" if kept else "neither kept nor broken for sure")
            found.append(
                Finding(
                    check.promise.words,
                    not broken,
                    f"{check.promise.to_target().quantity} is {seen} in a sample of {self.rows} "
                    f"rows: {says} (p-value {check.broken_p_value:.2g} if it holds, "
                    f"{check.kept_p_value:.2g} if it does not)",
                )
            )
        worst = min(self.shifts, key=lambda shift: shift.p_value)
        shifted = self.shift_p_value <= self.level / 2
        detail = f"p = {self.shift_p_value:.2g}; the most unlike: {worst.what}"
        found.append(Finding("rows like those of the certificate", not shifted, detail))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def check_cascade(cascade: Cascade) -> list[Finding]:
    """Compare a loaded cascade with its certificate: artefact, engine and versions."""
    certificate = cascade.certificate
    if certificate is None or certificate.verdict == ESTIMATED:
        detail = "these thresholds have no certificate; run 'cascadebert tune'"
        return [Finding("certificate", False, detail)]
    same = certificate.artefact_fingerprint == cascade.fingerprint
    promised = certificate.verdict != NOT_CERTIFIED
    found = [
        Finding("certificate", promised, certificate.verdict),
        Finding(
            "artefact",
            same,
            "stages, labels, calibrations and thresholds are those of the certificate"
            if same
            else "stages, labels, calibrations, thresholds or the promise were changed; tune again",
        ),
    ]
    then, now = dict(certificate.versions or {}), cascade.versions
    if "processor" not in then:
        # Certificates did not always name it.
        del now["processor"]
    for name in sorted({*then, *now}):
        same = then.get(name) == now.get(name)
        detail = str(now.get(name)) if same else f"{now.get(name)}, certified {then.get(name)}"
        found.append(Finding(name, same, detail))
    return found


def needs_labels(cascade: Cascade) -> bool:
    """Whether the certificate can only be tested on labelled rows."""
    return any(target.needs_labels for target in _targets(cascade))


def _targets(cascade: Cascade) -> list[Target]:
    promises = cascade.certificate.promises if cascade.certificate else ()
    return [promise.to_target() for promise in promises]


def check_rows(
    cascade: Cascade,
    rows: Any,
    *,
    level: float = DEFAULT_LEVEL,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> RowsCheck:
    """Test a certificate on fresh rows, and whether they are drawn like its own.

    Every stage runs on every row.

    Args:
        cascade: has a certificate.
        rows: have labels where the certificate needs them, and groups where its own rows had them.
            One row per group is tested.
        level: bounds the probability of a false alarm.
        seed: fixes the order of the rows, the row drawn from each group, and the permutations.
        progress: is called with the number of rows after each batch; each row counts once per
            stage.

    Raises:
        InputError: there is no certificate, the rows are unusable or the certificate's own, or they
            lack the groups that the certificate is about.
    """
    checked_seed(seed)
    certificate = cascade.certificate
    if certificate is None or certificate.seen is None:
        raise InputError("this cascade has no certificate to test; run 'cascadebert tune' first")
    targets = _targets(cascade)
    labelled = needs_labels(cascade)
    fresh = as_rows(rows, with_labels=labelled)
    if fresh.texts_fingerprint() == certificate.rows_fingerprint:
        raise InputError(
            "these are the rows that the certificate was made from, so they cannot test it; give "
            "fresh rows"
        )
    if certificate.artefact_fingerprint != cascade.fingerprint:
        raise InputError(
            "the stages, labels or thresholds have changed since the cascade was certified; tune "
            "again"
        )
    order = np.random.default_rng(seed).permutation(len(fresh))
    if certificate.grouped and fresh.group is None:
        raise InputError(
            "the certificate is about one row per group, and these rows have no groups; name the "
            "column with --group-column (in Python rows with a 'group')"
        )
    if fresh.group is not None:
        order = one_of_each(order, np.array(fresh.group_ids()))
    fresh = fresh.take(order.tolist())
    runs = cascade.run_stages(fresh, progress=progress)
    cost = certificate.cost_unit or "seconds"
    replay = cascade.replay(fresh, runs, cost=cost, with_labels=labelled)
    routing = cascade.routing
    assert routing is not None
    outcome = replay.outcome(routing)
    found = tuple(
        shifts(certificate.seen, replay.summary(routing, certificate.seen.edges), seed=seed)
    )
    return RowsCheck(
        rows=len(fresh),
        level=level,
        promises=tuple(
            PromiseCheck(
                promise=promise,
                observed=observed(target, outcome),
                broken_p_value=target.broken_p_value(outcome),
                kept_p_value=kept,
            )
            for promise, target, kept in zip(
                certificate.promises, targets, p_values(outcome, routing, targets), strict=True
            )
        ),
        shifts=found,
        shift_p_value=shift_p_value(found),
    )
