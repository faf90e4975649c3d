"""The HTML report on a cascade and labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.cascade import Cascade
from cascadebert.deferral.certificates.certificate import (
    CERTIFIED,
    DO_NOT_CASCADE,
    NOT_CERTIFIED,
    Certificate,
)
from cascadebert.deferral.search.policy import observed
from cascadebert.deferral.targets import MaxDrop, Target, target_of
from cascadebert.disk import write_text
from cascadebert.errors import InputError, MissingDependencyError
from cascadebert.evaluation.check import DEFAULT_LEVEL
from cascadebert.report import pictures
from cascadebert.report.breakdown import by_label, by_length, hardest, surest_errors
from cascadebert.report.evaluated_rows import EvaluatedRows
from cascadebert.report.price import price_of_confidence, too_few
from cascadebert.report.svg import shown

NO_CERTIFICATE = "no certificate"

_TEMPLATE = "page.html.j2"
_LOOKS = {CERTIFIED: "good", NOT_CERTIFIED: "bad", DO_NOT_CASCADE: "bad"}
_DEFAULT_DROP = 0.01
_MOST_CHARACTERS = 200
_MOST_NAME = 60


def write_report(
    cascade: Cascade,
    rows: Any,
    path: str | Path,
    *,
    title: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write a report on a cascade and labelled rows as one HTML file.

    Every stage runs once on every row. The page needs no network and no other files.

    Args:
        cascade: is best tuned on other rows than these.
        rows: have labels.
        path: names the file, which is replaced if it exists.
        title: names the cascade; by default the names of its stages.
        progress: is called with the number of rows after each batch; each row counts once per
            stage.

    Raises:
        InputError: the rows are unusable, a label is unknown, or the folder does not exist.
        MissingDependencyError: the extra ``report`` (jinja2 and matplotlib) is not installed.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise InputError(f"{path}: the folder {target.parent} does not exist; make it first")
    template = _template()
    evaluated = EvaluatedRows.of(cascade, rows, progress)
    stages = " → ".join(stage.name for stage in cascade.stages)
    page = template.render(
        title=shown(title or stages, _MOST_NAME),
        version=version("cascadebert"),
        evaluated=evaluated,
        stages=[shown(name, _MOST_NAME) for name in evaluated.stages],
        score=evaluated.replay.score.name,
        verdict=_verdict(cascade, evaluated),
        figures=evaluated.figures(),
        stage_figures=evaluated.stage_figures(),
        promises=_promises(cascade.certificate, evaluated),
        promises_tested=_promises_tested(cascade.certificate, evaluated),
        notes=_notes(cascade, evaluated),
        **_pictures(cascade.certificate, evaluated),
        hardest=_rows(evaluated, hardest(evaluated)),
        errors=_rows(evaluated, surest_errors(evaluated)),
    )
    write_text(target, page)
    return target


def _template() -> Any:
    # Loaded before any stage runs: a missing package is reported at once.
    try:
        import_module("matplotlib")
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        package = (error.name or "jinja2").partition(".")[0]
        raise MissingDependencyError(package, "the report", "report") from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    text = files("cascadebert.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("-", "−")


@dataclass(frozen=True)
class _Verdict:
    badge: str
    look: str
    words: str


def _verdict(cascade: Cascade, evaluated: EvaluatedRows) -> _Verdict:
    certificate = cascade.certificate
    if certificate is not None:
        look = _LOOKS.get(certificate.verdict, "none")
        return _Verdict(certificate.verdict, look, certificate.words())
    if len(evaluated.stages) == 1:
        why = "There is no certificate: a single stage answers every row, and has no thresholds."
    elif not evaluated.tuned:
        why = (
            "There is no certificate, as this cascade is not tuned: it has no thresholds, and its "
            "last stage answers every row. The figures of the cascade below are of the last stage "
            "alone; the pictures show what thresholds could make of it. Run 'cascadebert tune'."
        )
    else:
        why = (
            "There is no certificate: the thresholds were set by hand. Run 'cascadebert tune' to "
            "get one."
        )
    return _Verdict(NO_CERTIFICATE, "none", why)


@dataclass(frozen=True)
class _PromiseRow:
    """One promise: its quantity on the certificate's rows and on these."""

    words: str
    then: float | None
    now: float | None
    p_value: float
    broken: bool


def _promises(certificate: Certificate | None, evaluated: EvaluatedRows) -> list[_PromiseRow]:
    if certificate is None:
        return []
    # Sequential tests need the rows in random order.
    order = np.random.default_rng(0).permutation(len(evaluated))
    outcome = evaluated.replay.take(order).outcome(evaluated.routing)
    level = DEFAULT_LEVEL / max(len(certificate.promises), 1)
    found = []
    for promise, target in zip(certificate.promises, _targets(certificate), strict=True):
        p_value = target.broken_p_value(outcome)
        found.append(
            _PromiseRow(
                words=promise.words,
                then=promise.observed,
                now=observed(target, outcome),
                p_value=p_value,
                broken=p_value <= level,
            )
        )
    return found


def _is_own(certificate: Certificate, evaluated: EvaluatedRows) -> bool:
    return certificate.rows_fingerprint == evaluated.rows.texts_fingerprint()


def _promises_tested(certificate: Certificate | None, evaluated: EvaluatedRows) -> bool:
    """Whether there are promises, and rows that can test them."""
    return (
        certificate is not None
        and certificate.verdict in (CERTIFIED, DO_NOT_CASCADE)
        and not _is_own(certificate, evaluated)
    )


def _targets(certificate: Certificate | None) -> list[Target]:
    promises = certificate.promises if certificate else ()
    return [target_of(promise.target, promise.value, promise.label) for promise in promises]


def _notes(cascade: Cascade, evaluated: EvaluatedRows) -> list[str]:
    """Warnings about the figures."""
    notes = []
    certificate = cascade.certificate
    if certificate is not None:
        if _is_own(certificate, evaluated):
            notes.append(
                "These are the certificate's own rows, some of which chose the thresholds, so the "
                "figures are too good. Use other rows."
            )
        if certificate.artefact_fingerprint not in (None, cascade.fingerprint):
            notes.append(
                "The stages, labels or thresholds have changed since the certificate was made: run "
                "'cascadebert check'."
            )
    texts = evaluated.rows.texts_fingerprint()
    for number, stage in enumerate(cascade.stages, start=1):
        if stage.record.trained_on == texts:
            notes.append(
                f"Stage {number} was trained on these rows, so its figures are too good. Use other "
                "rows."
            )
    return notes


def _pictures(certificate: Certificate | None, evaluated: EvaluatedRows) -> dict[str, Any]:
    """All pictures by name in the template; None where one is left out."""
    from markupsafe import Markup

    several = len(evaluated.stages) > 1
    targets = _targets(certificate) or [MaxDrop(_DEFAULT_DROP)]
    why_no_price = too_few(evaluated)
    price = None if why_no_price else price_of_confidence(evaluated, targets)
    on_cost = all(target.on_cost for target in targets)
    abstained = bool((~evaluated.outcome.answered).any())
    return {
        "frontier": Markup(pictures.frontier(evaluated)) if several else None,
        "price": price and Markup(pictures.price(price, on_cost)),
        "price_found": price,
        "price_on_cost": on_cost,
        "price_targets": " and ".join(map(str, targets)),
        "why_no_price": why_no_price,
        "reliability": [
            Markup(pictures.reliability_panel(evaluated, k)) for k in range(len(evaluated.stages))
        ],
        "risk": Markup(pictures.risk(evaluated)),
        "by_label": Markup(pictures.stacks(evaluated, by_label(evaluated), "by-label", "label")),
        "by_length": Markup(
            pictures.stacks(evaluated, by_length(evaluated), "by-length", "length")
        ),
        "abstained": abstained,
    }


@dataclass(frozen=True)
class _Answer:
    label: str
    confidence: float
    right: bool
    final: bool


@dataclass(frozen=True)
class _Row:
    """One row in a table; its number counts from 1."""

    number: int
    text: str
    pair: str | None
    label: str
    answers: Sequence[_Answer]


def _rows(evaluated: EvaluatedRows, positions: NDArray[np.int64]) -> list[_Row]:
    pairs = evaluated.rows.pairs
    return [
        _Row(
            number=i + 1,
            text=shown(evaluated.rows.texts[i], _MOST_CHARACTERS),
            pair=shown(pairs[i], _MOST_CHARACTERS) if pairs else None,
            label=shown(evaluated.labels[evaluated.truth[i]], _MOST_NAME),
            answers=[
                _Answer(
                    label=shown(evaluated.labels[evaluated.answers[k, i]], _MOST_NAME),
                    confidence=float(evaluated.confidence[k, i]),
                    right=bool(evaluated.right[k, i]),
                    final=bool(evaluated.outcome.end[i] == k),
                )
                for k in range(len(evaluated.stages))
            ],
        )
        for i in positions.tolist()
    ]
