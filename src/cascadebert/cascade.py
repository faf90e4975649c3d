"""Cascade: complete classifiers, small to large, and the thresholds between them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from numpy.typing import ArrayLike, NDArray

from cascadebert.deferral.calibration import Calibration
from cascadebert.deferral.certificates.certificate import Certificate
from cascadebert.deferral.certificates.fixed_sequence import refuse_too_few
from cascadebert.deferral.confidence import (
    DEFAULT_SCORE,
    SCORE_NAMES,
    ConfidenceScore,
    confidence_score,
)
from cascadebert.deferral.held_out import HeldOut
from cascadebert.deferral.routing import ALWAYS_EXIT, NEVER_EXIT, Thresholds
from cascadebert.deferral.search.arguments import (
    checked_seed,
    checked_targets,
    refuse_confidence,
    refuse_unfit,
)
from cascadebert.deferral.search.choose import choose_thresholds
from cascadebert.deferral.search.policy import Policy
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import MaxSecondsPerRow, Target
from cascadebert.errors import (
    ArtifactError,
    CascadeWarning,
    InputError,
    LabelMismatchError,
    MissingDependencyError,
)
from cascadebert.inference.scheduler import classify
from cascadebert.machine import machine_name
from cascadebert.persistence.integrity import check_files
from cascadebert.persistence.model_card import model_card
from cascadebert.persistence.record import CascadeRecord, read_record
from cascadebert.persistence.save import write_cascade
from cascadebert.prediction import Prediction
from cascadebert.rows.rows import Rows, as_rows, listed
from cascadebert.runtimes import AUTO, refuse_unknown_runtime, runtime_for, runtime_versions
from cascadebert.stages.base import Stage
from cascadebert.stages.costs import StageRun, measured_on, row_costs
from cascadebert.stages.load import load_stage
from cascadebert.stages.speed import measure_speed
from cascadebert.stages.transformer import TransformerStage

T = TypeVar("T")
Progress = Callable[[int], object]

DEFAULT_WINDOW = 16_384
COSTS = ("seconds", "flops", "layers")


class Cascade:
    """A list of complete classifiers with a threshold for each but the last.

    A row goes through stage 1; if its confidence is above that stage's threshold it exits with
    that answer, or else it goes on to the next stage. The last stage answers, or abstains.

    Made by :meth:`from_stages` or :meth:`from_pretrained`.

    Attributes:
        stages: the loaded stages, small to large.
        labels: label names, in the order of the columns of ``predict_proba``.
        policy: what the last :meth:`tune` chose, with the frontier that it chose from.
    """

    def __init__(self, folder: Path, record: CascadeRecord, runtime: str = AUTO) -> None:
        refuse_unknown_runtime(runtime)
        runtimes = [
            runtime_for(runtime, stage.runtime, stage.name)
            if stage.kind == "transformer"
            else stage.runtime
            for stage in record.stages
        ]
        check_files(folder, record.stages, runtimes)
        self.stages = tuple(
            load_stage(folder / stage.folder, stage, record.labels, name)
            for stage, name in zip(record.stages, runtimes, strict=True)
        )
        self.labels = record.labels
        certified = record.certificate and (record.certificate.versions or {}).get("runtime")
        if certified and certified != self.versions["runtime"]:
            warnings.warn(
                f"the thresholds were chosen with the runtime '{certified}' and this is "
                f"'{self.versions['runtime']}': what was promised does not hold for it; tune again",
                CascadeWarning,
                stacklevel=3,
            )
        self._folder = folder
        self._record = record
        self.policy: Policy | None = None
        # Keeps a folder of from_stages alive for as long as the cascade is.
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    # Making, loading and saving

    @classmethod
    def from_stages(
        cls,
        checkpoints: Sequence[str | PathLike[str]],
        *,
        names: Sequence[str] | None = None,
        label_maps: Mapping[int, Mapping[str, str]] | None = None,
        max_length: int | None = None,
        rows: Rows | None = None,
        quantise: bool = True,
        runtime: str = AUTO,
        on_stage: Progress | None = None,
    ) -> Cascade:
        """Export fine-tuned checkpoints, small to large, and make them one cascade.

        Needs the extra ``train`` (torch, transformers, onnx).

        Args:
            checkpoints: folders or hub names of sequence classification checkpoints, or the
                folder of a fitted linear stage.
            names: of the stages; by default those of the checkpoints' folders.
            label_maps: by stage number (from 1) new names for a checkpoint's labels.
            max_length: tokens at which every stage truncates; by default as much as it reads.
            rows: rows such as the cascade will see, best those that the stages were trained on;
                labels are not used. On them each stage is quantised, the fastest runtime that
                keeps to fp32 is found for it, and its speed is measured. Without them the stages
                stay in fp32.
            quantise: whether to do so, or to use the rows to check the export alone.
            runtime: see :meth:`from_pretrained`.
            on_stage: called with 1 after each stage that is done.

        Raises:
            LabelMismatchError: the stages' labels differ in more than order.
            ArtifactError: a checkpoint that cannot be opened.
            ExportError: an exported graph that disagrees with torch.
            MissingDependencyError: the extra ``train`` is not installed.
        """
        try:
            from cascadebert.export.cascade import export_cascade
        except ModuleNotFoundError as error:
            missing = error.name or "torch"
            raise MissingDependencyError(missing, "building a cascade", "train") from None
        scratch = tempfile.TemporaryDirectory(prefix="cascadebert-")
        record = export_cascade(
            [fspath(checkpoint) for checkpoint in checkpoints],
            Path(scratch.name),
            names=names,
            label_maps=label_maps or {},
            max_length=max_length,
            rows=rows,
            quantise=quantise,
            on_stage=on_stage,
        )
        cascade = cls(Path(scratch.name), record, runtime)
        cascade._scratch = scratch
        if rows is not None and quantise:
            cascade.measure_speed(rows)
        return cascade

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], *, runtime: str = AUTO) -> Cascade:
        """Load a saved cascade; every file that is read is checked against its recorded hash.

        Args:
            name: a folder, or the name of a cascade on the Hugging Face hub.
            runtime: what runs transformers: "onnx", "openvino" or "torch" in fp32,
                "openvino-bf16", "torch-bf16", or "openvino-int8" where the stages were quantised.
                By default each stage runs on the one that was measured best for it.

        Raises:
            ArtifactError: not a cascade, another schema version, or a damaged file.
        """
        folder = Path(name).absolute()
        if not folder.exists() and _may_be_hub_name(fspath(name)):
            folder = _download(fspath(name))
        record = read_record(folder)
        return cls(folder, record, runtime)

    def save_pretrained(self, folder: str | PathLike[str]) -> Path:
        """Write the cascade as one folder; a crash leaves what was there before whole.

        Raises:
            ArtifactError: the folder exists and holds something else than a cascade, or a stage
                lies in memory alone.
        """
        target = Path(folder).absolute()
        for stage in self.stages:
            if stage.in_memory:
                raise ArtifactError(
                    f"stage '{stage.name}' has a model in memory, which cannot be saved; put a "
                    "stage made from a checkpoint in its place"
                )
        write_cascade(target, self._folder, self._record, model_card(self._record))
        return target

    def push_to_hub(self, name: str, *, private: bool | None = None) -> str:
        """Upload the cascade to the Hugging Face hub.

        Args:
            name: ``user/name`` of the repository, made if it is not there.
            private: whether a new repository is private; by default as the account has it.

        Returns:
            The address of the commit.
        """
        api = huggingface_hub.HfApi()
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "cascade")
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Upload cascade"
            )
        return str(commit.commit_url)

    # Thresholds

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """One a stage but the last, on the scale of the confidence; None before they are chosen.

        At 0 every row exits; at 1 none does, and the stage is not run.
        """
        return self._record.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        self.routing = Thresholds(tuple(float(value) for value in values))

    @property
    def routing(self) -> Thresholds | None:
        """All thresholds: for exits, for going straight to the last stage, for abstaining."""
        return self._record.routing

    @routing.setter
    def routing(self, routing: Thresholds) -> None:
        self._record = self._record.with_routing(routing)
        self.policy = None

    @property
    def score(self) -> ConfidenceScore:
        """The confidence score that thresholds are compared with."""
        return self._record.confidence_score()

    @property
    def certificate(self) -> Certificate | None:
        """What tuning found, and what is promised of it; None where thresholds were set by hand."""
        return self._record.certificate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the cascade's answers, but for versions of the engine."""
        return self._record.fingerprint()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what decides the answers in this process."""
        return runtime_versions(
            stage.runtime for stage in self.stages if isinstance(stage, TransformerStage)
        )

    def with_thresholds(self, values: Sequence[float]) -> Cascade:
        """The same loaded stages under other thresholds; this cascade stays as it is."""
        other = copy.copy(self)
        other.thresholds = tuple(values)
        return other

    def with_stages(self, stages: Sequence[Stage]) -> Cascade:
        """A cascade of other loaded stages, without thresholds: tune it.

        Raises:
            InputError: no stages.
            LabelMismatchError: a stage that gives logits in another order than this cascade.
        """
        if not stages:
            raise InputError("a cascade needs a stage at least")
        for stage in stages:
            if list(stage.logit_labels) != list(self.labels):
                raise LabelMismatchError(
                    f"stage '{stage.name}' gives logits for {list(stage.logit_labels)}, this "
                    f"cascade has {list(self.labels)}; take a stage of this cascade, or build one"
                )
        other = self._with_stages(stages)
        other._record = other._record.untuned()
        other.policy = None
        return other

    def _with_stages(self, stages: Sequence[Stage]) -> Cascade:
        """The same cascade of these stages, and of what their records say."""
        other = copy.copy(self)
        other.stages = tuple(stages)
        records = tuple(stage.record for stage in stages)
        other._record = dataclasses.replace(self._record, stages=records)
        return other

    def alone(self, number: int) -> Cascade:
        """Stage ``number`` (from 1) answering every row and no other stage running."""
        before = [NEVER_EXIT] * (number - 1)
        after = [ALWAYS_EXIT] * (len(self.stages) - number)
        return self.with_thresholds((before + after)[: len(self.stages) - 1])

    def tune(
        self,
        rows: Any,
        target: Target | Sequence[Target],
        confidence: float | None = 0.95,
        *,
        seed: int = 0,
        cost: str = "seconds",
        score: str = DEFAULT_SCORE,
        calibration: str | None = None,
        progress: Progress | None = None,
    ) -> Certificate:
        """Choose the thresholds that serve a target best on held-out rows, and set them.

        Every stage runs once on every row, and :func:`choose_thresholds` does the rest. Rows of
        the same texts or the same group stay together when some propose and others certify. Where
        nothing can be certified, the safest thresholds are set and the certificate says so.

        Args:
            rows: labelled rows that no stage was trained on, see :func:`as_rows`.
            target: what is wanted, such as :class:`~cascadebert.MaxDrop`, or several that are to
                hold at once. For :class:`~cascadebert.MinAgreement` the rows need no labels.
            confidence: 1 minus the chance of a promise that does not hold; None asks for no
                promise, and for the best thresholds on these very rows.
            seed: of the draw of the rows that propose.
            cost: what a stage costs: "seconds" as measured by :meth:`measure_speed`, or if it was
                not, in this call; or counted "flops" or "layers".
            score: name of the confidence score, see :mod:`cascadebert.deferral.confidence`.
            calibration: fit each stage's calibration on these rows first: "temperature",
                "vector", "isotonic" or "none"; only without a promise. By default each keeps the
                one that it has.
            progress: called with a number of rows after each batch, ``len(stages)`` times over
                for every row.

        Returns:
            What is promised, and the figures; ``self.policy`` has the frontier too.

        Raises:
            InputError: unusable rows, rows that a stage was trained on, labels the cascade does
                not know, an unknown cost, score or calibration.
            TargetError: no promise is asked for and no thresholds meet the target; thresholds and
                calibrations stay.
            MissingDependencyError: a calibration or the learned score is asked for without the
                extra ``train``.
        """
        targets = checked_targets(target)
        self._refuse_unknown(targets, cost, score)
        refuse_confidence(confidence)
        checked_seed(seed)
        if calibration is not None and confidence is not None:
            raise InputError(
                f"calibration {calibration!r} and confidence {confidence} cannot both be had of "
                "the same rows: rows that shaped a stage cannot certify it; calibrate with "
                "confidence=None, then tune on other rows"
            )
        needs_labels = calibration not in (None, "none") or any(t.needs_labels for t in targets)
        held_out = as_rows(rows, with_labels=needs_labels)
        if not len(held_out):
            raise InputError("there are no rows to tune on; give hundreds of held-out ones")
        self._refuse_training_rows(held_out, certifying=confidence is not None)
        together = np.array(held_out.groups())
        if confidence is not None:
            refuse_too_few(together)
        truth = self.label_ids(held_out) if needs_labels else None
        fit = None if calibration is None else _calibration_fitter(calibration)
        stages = self.stages if fit is None else self._calibrated([None] * len(self.stages)).stages
        runs = [stage.run_all(held_out, progress=progress) for stage in stages]
        for number, run in enumerate(runs, start=1):
            if truth is not None:
                self._warn_if_worse_than_chance(number, run.logits, truth)
        logits: list[NDArray[np.floating[Any]]] = [run.logits for run in runs]
        fitted: list[Calibration | None] = [stage.record.calibration for stage in stages]
        if fit is not None and truth is not None:
            fitted = [fit(values, truth) for values in logits]
            logits = [
                values if fitting is None else fitting(values)
                for fitting, values in zip(fitted, logits, strict=True)
            ]
        costs = row_costs(runs, cost, modelled=True)
        machine = self._machine_of(runs) if cost == "seconds" else None
        policy = choose_thresholds(
            logits,
            truth,
            costs,
            targets,
            confidence,
            seed,
            groups=None if held_out.group is None else together,
            duplicates=together,
            score=score,
            logits=True,
            names=self.labels,
        )
        for number in policy.certificate.unranked_stages:
            warnings.warn(
                f"the {score} of stage {number} '{self.stages[number - 1].name}' does not rank its "
                "right answers above its wrong ones any better than chance; try another score, or "
                "train the stage on more rows",
                CascadeWarning,
                stacklevel=2,
            )
        calibrated = self._calibrated(fitted).stages
        tuned = self._with_stages([stage.with_runtime() for stage in calibrated])
        self.stages = tuned.stages
        self._record = dataclasses.replace(
            tuned._record, score=score, score_parameters=policy.score.parameters
        )
        self.routing = policy.routing
        certificate = dataclasses.replace(
            policy.certificate,
            cost_unit=cost,
            paired=held_out.pairs is not None,
            rows_fingerprint=held_out.texts_fingerprint(),
            versions=self.versions,
        )
        self._record = dataclasses.replace(
            self._record,
            cost={"kind": cost, "per_row": costs.mean(axis=0).tolist(), "machine": machine},
            certificate=certificate,
            data_fingerprint=held_out.fingerprint(),
        )
        certificate = dataclasses.replace(certificate, artefact_fingerprint=self.fingerprint)
        self._record = dataclasses.replace(self._record, certificate=certificate)
        self.policy = dataclasses.replace(policy, certificate=certificate)
        return certificate

    def measure_speed(self, rows: Any, *, progress: Progress | None = None) -> None:
        """Measure how fast each stage is on this machine, for batches and for tuning.

        Takes some seconds a stage. The thresholds and what is promised of them stay.

        Args:
            rows: rows like those that the cascade is for; labels are not used.
            progress: called with 1 after each stage that is done.
        """
        checked = as_rows(rows)
        if not len(checked):
            raise InputError("there are no rows to time the stages on; give some hundred")
        stages = []
        for stage in self.stages:
            stages.append(stage.with_speed(measure_speed(stage, checked)))
            if progress:
                progress(1)
        measured = self._with_stages(stages)
        self.stages, self._record = measured.stages, measured._record

    def run_stages(self, rows: Rows, *, progress: Progress | None = None) -> list[StageRun]:
        """Run every stage on every row, whatever the thresholds.

        Args:
            rows: checked rows.
            progress: as in :meth:`tune`.
        """
        return [stage.run_all(rows, progress=progress) for stage in self.stages]

    def _machine_of(self, runs: Sequence[StageRun]) -> str:
        """The machine that the seconds are of."""
        here, machine = machine_name(), measured_on(runs)
        if machine not in (None, here):
            warnings.warn(
                f"the seconds that the stages take were measured on another machine ({machine}) "
                f"than this one ({here}); if the cascade is to run here, measure them again with "
                "'cascadebert bench --calibrate', or Cascade.measure_speed",
                CascadeWarning,
                stacklevel=3,
            )
        return machine or here

    def replay(
        self,
        rows: Rows,
        runs: Sequence[StageRun],
        *,
        cost: str = "seconds",
        with_labels: bool = True,
    ) -> Replay:
        """Try thresholds on what every stage has said.

        Args:
            rows: checked rows.
            runs: what :meth:`run_stages` gave for them.
            cost: what a stage costs, see :meth:`tune`.
            with_labels: whether answers are judged by labels, or by the last stage's answers.
        """
        answers = np.stack([run.logits.argmax(axis=1) for run in runs])
        held_out = HeldOut(
            answers=answers,
            truth=self.label_ids(rows) if with_labels else answers[-1],
            costs=row_costs(runs, cost),
            names=self.labels,
        )
        logits = [run.logits.astype(np.float64) for run in runs]
        return Replay.of(held_out, logits, self.score)

    def _refuse_unknown(self, targets: Sequence[Target], cost: str, score: str) -> None:
        if cost not in COSTS:
            raise InputError(f"no cost is called {cost!r}; there are {', '.join(COSTS)}")
        if score not in SCORE_NAMES:
            confidence_score(score)
        refuse_unfit(targets, len(self.stages), self.labels)
        for target in targets:
            if isinstance(target, MaxSecondsPerRow) and cost != "seconds":
                raise InputError(
                    f"{target}, with {cost} as the cost: leave the cost at seconds, or ask for a "
                    "speed-up"
                )

    def _refuse_training_rows(self, rows: Rows, *, certifying: bool) -> None:
        fingerprint = rows.texts_fingerprint()
        for number, stage in enumerate(self.stages, start=1):
            if stage.record.trained_on == fingerprint:
                raise InputError(
                    f"stage {number} '{stage.name}' was trained on these very rows (fingerprint "
                    f"{fingerprint[:12]}…), on which it is surer than on any others; give rows "
                    "that no stage has seen"
                )
            if certifying and stage.record.quantised_on == fingerprint:
                raise InputError(
                    f"stage {number} '{stage.name}' was quantised on these very rows (fingerprint "
                    f"{fingerprint[:12]}…): rows that shaped a stage cannot certify it; give others"
                )

    def _calibrated(self, calibrations: Sequence[Calibration | None]) -> Cascade:
        """The same loaded stages under other calibrations."""
        pairs = zip(self.stages, calibrations, strict=True)
        return self._with_stages([stage.with_calibration(own) for stage, own in pairs])

    def label_ids(self, rows: Rows) -> NDArray[np.int64]:
        """Class index of each row's label.

        Raises:
            InputError: a label that the cascade does not know.
        """
        ids = {label: i for i, label in enumerate(self.labels)}
        for i, label in enumerate(rows.labels or ()):
            if label not in ids:
                raise InputError(
                    f"row {i}: label {label!r} is not one that the cascade knows "
                    f"({listed(self.labels)}); rename it, or map the stages' labels when building"
                )
        return np.array([ids[label] for label in rows.labels or ()], dtype=np.int64)

    def _warn_if_worse_than_chance(
        self, number: int, logits: NDArray[np.float32], truth: NDArray[np.int64]
    ) -> None:
        accuracy = float((logits.argmax(axis=1) == truth).mean())
        chance = 1 / len(self.labels)
        noise = 3 * math.sqrt(chance * (1 - chance) / len(truth))
        if accuracy < chance - noise:
            warnings.warn(
                f"stage {number} '{self.stages[number - 1].name}' is right on {accuracy:.1%} of "
                "the rows, less than chance: are its label names in the order of its logits?",
                CascadeWarning,
                stacklevel=3,
            )

    # Classifying

    def predict(
        self, texts: Any, pairs: Sequence[str] | None = None, *, progress: Progress | None = None
    ) -> Prediction:
        """Classify rows.

        Args:
            texts: strings, (text, text_pair) tuples, mappings with text and text_pair, a
                ``datasets.Dataset`` or :class:`~cascadebert.Rows`.
            pairs: second texts, one for each string in ``texts``.
            progress: called with the number of rows that have got their answer, as they get it.

        Raises:
            InputError: a row that cannot be classified; nothing has run then.
        """
        rows = as_rows(texts, pairs)
        windows = [
            self._predict_window(rows.slice(start, start + DEFAULT_WINDOW), progress)
            for start in range(0, max(len(rows), 1), DEFAULT_WINDOW)
        ]
        return Prediction.joined(windows)

    def predict_iter(
        self,
        rows: Iterable[Any],
        *,
        window: int = DEFAULT_WINDOW,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Classify rows that do not fit in memory, a window at a time, in input order.

        Within a window the rows that a stage defers are pooled and batched anew for the next.

        Args:
            rows: any iterable of what :meth:`predict` takes as one row.
            window: rows in memory at a time; larger fills the batches of late stages better.
            progress: as in :meth:`predict`.
        """
        if window < 1:
            raise InputError(f"a window of {window} rows holds nothing; give 1 or more")
        first = 0
        for part in batched(rows, window):
            yield self._predict_window(as_rows(part, first=first), progress)
            first += len(part)

    def predict_proba(self, texts: Any, pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Probabilities of shape (rows, classes), columns in the order of ``labels``; each
        row's are those of the stage that answered.
        """
        return self.predict(texts, pairs).probabilities

    def __call__(self, texts: Any, pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Classify as transformers' text classification pipeline does.

        Returns:
            One ``{"label": name, "score": probability}`` a row; a list also for one string. The
            label is None where the cascade abstained.
        """
        out = self.predict(texts, pairs)
        scores = out.probabilities.max(axis=1)
        return [
            {"label": str(label) or None, "score": float(score)}
            for label, score in zip(out.labels, scores, strict=True)
        ]

    def _predict_window(self, rows: Rows, progress: Progress | None) -> Prediction:
        self._warn_of_other_kind(rows)
        routing = self._routing_to_run()
        return classify(rows, self.stages, self.labels, routing, self.score, progress)

    def _warn_of_other_kind(self, rows: Rows) -> None:
        paired = self.certificate.paired if self.certificate else None
        if paired is not None and paired != (rows.pairs is not None):
            kinds = ("single texts", "pairs of texts")
            warnings.warn(
                f"these rows are {kinds[not paired]}, and the thresholds were chosen on "
                f"{kinds[paired]}: what was promised does not hold for them",
                CascadeWarning,
                stacklevel=4,
            )

    def _routing_to_run(self) -> Thresholds:
        if self.routing is None:
            if len(self.stages) > 1:
                warnings.warn(
                    "this cascade has no thresholds yet, so the last stage answers every row; "
                    "call tune() with held-out rows, or set thresholds",
                    CascadeWarning,
                    stacklevel=4,
                )
            return Thresholds.last_stage_alone(len(self.stages))
        return self.routing


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def _calibration_fitter(
    kind: str,
) -> Callable[[ArrayLike, ArrayLike], Calibration | None]:
    try:
        from cascadebert.deferral.fit_calibration import fit_calibration, refuse_unknown
    except ModuleNotFoundError as error:
        missing = error.name or "scikit-learn"
        raise MissingDependencyError(missing, "fitting a calibration", "train") from None
    refuse_unknown(kind)
    return functools.partial(fit_calibration, kind)


def _may_be_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _download(name: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{name}: neither a folder here nor a cascade that the hub gives ({reason}); "
            "check the path or the name"
        ) from None
