"""Cascade: complete classifiers, small to large, and the thresholds between them."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cascadebert import tuning
from cascadebert.deferral.certificates.certificate import Certificate
from cascadebert.deferral.confidence import DEFAULT_SCORE, ConfidenceScore
from cascadebert.deferral.routing import Thresholds
from cascadebert.deferral.search.policy import Policy
from cascadebert.deferral.search.replay import Replay
from cascadebert.deferral.targets import Target
from cascadebert.errors import (
    ArtifactError,
    CascadeError,
    CascadeWarning,
    InputError,
    MissingDependencyError,
)
from cascadebert.inference.scheduler import classify
from cascadebert.inference.state import Progress, State
from cascadebert.machine import thread_count
from cascadebert.persistence import hub
from cascadebert.persistence.integrity import check_files
from cascadebert.persistence.model_card import model_card
from cascadebert.persistence.record import CascadeRecord, read_record
from cascadebert.persistence.save import write_cascade
from cascadebert.prediction import Prediction
from cascadebert.rows.rows import Rows, as_rows, usable_rows
from cascadebert.runtimes import AUTO, refuse_unknown_runtime, runtime_for
from cascadebert.stages.base import Stage
from cascadebert.stages.costs import COSTS, StageRun
from cascadebert.stages.load import load_stage

T = TypeVar("T")

DEFAULT_WINDOW = 16_384
RAISE, SKIP, NULL = "raise", "skip", "null"
ON_ERROR = (RAISE, SKIP, NULL)


class Cascade:
    """A list of complete classifiers with a threshold for each but the last.

    A row goes through stage 1. If its confidence is above that stage's threshold it exits with that
    answer; otherwise it is deferred to the next stage. The last stage answers, or abstains.

    Made by :meth:`from_stages` or :meth:`from_pretrained`. It may be called from many threads, and
    after a fork. It pickles by its folder; a cascade that was never saved pickles with its files.

    Example:
        >>> from cascadebert import Cascade
        >>> cascade = Cascade.from_pretrained("my-cascade")
        >>> cascade.predict(["a text"]).labels.shape
        (1,)
    """

    def __init__(
        self,
        folder: Path,
        record: CascadeRecord,
        runtime: str = AUTO,
        *,
        threads: int | None = None,
        preload: bool = False,
        scratch: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        refuse_unknown_runtime(runtime)
        runtimes = [
            runtime_for(runtime, stage.runtime, stage.name)
            if stage.kind == "transformer"
            else stage.runtime
            for stage in record.stages
        ]
        check_files(folder, record.stages, runtimes)
        count = thread_count(threads)
        stages = tuple(
            load_stage(folder / stage.folder, stage, record.labels, name, count, scratch)
            for stage, name in zip(record.stages, runtimes, strict=True)
        )
        self._held: State | None = State(record, stages)
        self._warn_of_other_engine()
        if preload:
            for stage in stages:
                stage.open()

    @property
    def _state(self) -> State:
        if self._held is None:
            raise CascadeError("this cascade was closed; load it again")
        return self._held

    def _of(self, state: State) -> Self:
        other = object.__new__(type(self))
        other._held = state
        return other

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self._of(self._state)

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
        threads: int | None = None,
        on_stage: Progress | None = None,
    ) -> Cascade:
        """Export fine-tuned checkpoints, small to large, and build one cascade from them.

        Needs the extra ``train`` (torch, transformers, onnx). The stages lie in a temporary folder
        until the cascade is saved, closed or collected.

        Args:
            checkpoints: name folders or hub names of sequence classification checkpoints, or the
                folder of a fitted linear stage.
            names: name the stages; by default as the checkpoints' folders.
            label_maps: give, by stage number (from 1), new names for a checkpoint's labels.
            max_length: truncates every stage at this many tokens; by default each reads as many as
                it can.
            rows: are like the rows that the cascade will see, best the rows that the stages were
                trained on; labels are not used. On them each stage is quantised, the fastest
                runtime whose answers stay within tolerance of fp32 is found, and its speed is
                measured. Without rows the stages stay in fp32.
            quantise: is False to use ``rows`` only to check the export.
            runtime: see :meth:`from_pretrained`.
            threads: see :meth:`from_pretrained`.
            on_stage: is called with 1 after each finished stage.

        Raises:
            LabelMismatchError: the stages' labels differ in more than order.
            ArtifactError: a checkpoint cannot be opened.
            ExportError: an exported graph disagrees with torch.
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
        cascade = cls(Path(scratch.name), record, runtime, threads=threads, scratch=scratch)
        if rows is not None and quantise:
            cascade.measure_speed(rows)
        return cascade

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        runtime: str = AUTO,
        threads: int | None = None,
        preload: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
    ) -> Cascade:
        """Load a saved cascade; every file that is read is checked against its recorded hash.

        Args:
            name: is a folder, or the name of a cascade on the Hugging Face hub.
            runtime: runs transformers: "onnx", "openvino" or "torch" in fp32, "openvino-bf16",
                "torch-bf16", or "openvino-int8" where the stages were quantised. By default each
                stage runs on the runtime that was measured best for it.
            threads: limits the threads of each engine; by default ``$CASCADEBERT_THREADS``, or all
                cores that the process may use.
            preload: compiles every stage now. By default a stage is compiled when its first row
                comes.
            revision: selects a branch, tag or commit on the hub.
            token: is for a private repository on the hub.
            cache_dir: keeps what is downloaded.
            local_files_only: is True to use the hub's cache and no network.
            subfolder: holds the cascade within the repository or folder.

        Raises:
            ArtifactError: not a cascade, another schema version, or a damaged file.
        """
        folder = hub.resolve(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            subfolder=subfolder,
        )
        return cls(folder, read_record(folder), runtime, threads=threads, preload=preload)

    def save_pretrained(self, folder: str | PathLike[str]) -> Path:
        """Write the cascade as one folder; a crash leaves what was there before whole.

        Args:
            folder: is new, empty, or an earlier save of a cascade.

        Raises:
            ArtifactError: the folder exists and holds other files, or a stage exists in memory
                alone.
        """
        state, target = self._state, Path(folder).absolute()
        for stage in state.stages:
            if stage.in_memory:
                raise ArtifactError(
                    f"stage '{stage.name}' has a model in memory, which cannot be saved; put a "
                    "stage made from a checkpoint in its place"
                )
        sources = [stage.folder for stage in state.stages]
        write_cascade(target, sources, state.record, model_card(state.record))
        return target

    def push_to_hub(self, name: str, *, private: bool | None = None) -> str:
        """Upload the cascade to the Hugging Face hub.

        Args:
            name: is the repository, ``user/name``; it is made if it does not exist.
            private: makes a new repository private; by default the account's setting decides.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as scratch:
            return hub.upload(self.save_pretrained(Path(scratch) / "cascade"), name, private)

    def close(self) -> None:
        """Release the models, and the temporary folder of a cascade that was never saved.

        Cascades that share its stages must not be used afterwards.
        """
        if self._held is not None:
            for stage in self._held.stages:
                stage.close()
        self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What it is

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The loaded stages, small to large."""
        return self._state.stages

    @property
    def record(self) -> CascadeRecord:
        """What ``cascade.json`` says, or would say."""
        return self._state.record

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the columns of ``predict_proba``."""
        return self._state.labels

    @property
    def policy(self) -> Policy | None:
        """What the last :meth:`tune` chose, with the frontier that it chose from."""
        return self._state.policy

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """One per stage but the last, on the scale of the confidence; None before they are chosen.

        At 0 every row exits; at 1 none does, and the stage is not run.
        """
        return self._state.record.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        self.routing = Thresholds(tuple(float(value) for value in values))

    @property
    def routing(self) -> Thresholds | None:
        """All thresholds: for exits, for going straight to the last stage, for abstaining."""
        return self._state.record.routing

    @routing.setter
    def routing(self, routing: Thresholds) -> None:
        self._held = self._state.with_routing(routing)

    @property
    def score(self) -> ConfidenceScore:
        """The confidence score that thresholds are compared with."""
        return self._state.score

    @property
    def certificate(self) -> Certificate | None:
        """What tuning found and promises; None where thresholds were set by hand."""
        return self._state.record.certificate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the answers, except the engine's versions."""
        return self._state.record.fingerprint()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of everything that decides the answers in this process."""
        return self._state.versions

    def with_thresholds(self, values: Sequence[float]) -> Self:
        """The same loaded stages under other thresholds; this cascade stays as it is."""
        routing = Thresholds(tuple(float(value) for value in values))
        return self._of(self._state.with_routing(routing))

    def with_stages(self, stages: Sequence[Stage]) -> Self:
        """A cascade of other loaded stages, without thresholds: tune it.

        Raises:
            InputError: no stages.
            LabelMismatchError: a stage gives logits in another order than this cascade.
        """
        return self._of(self._state.with_stages(stages))

    def with_own_stages(self, stages: Sequence[Stage]) -> Self:
        """The same cascade over other versions of its own stages, such as recalibrated ones."""
        return self._of(self._state.with_own_stages(stages))

    def alone(self, number: int) -> Self:
        """Stage ``number`` (from 1) answers every row, and no other stage runs.

        Raises:
            InputError: there is no stage of this number.
        """
        return self._of(self._state.alone(number))

    # Tuning

    def tune(
        self,
        rows: Any,
        target: Target | Sequence[Target],
        confidence: float | None = 0.95,
        *,
        seed: int = 0,
        cost: str = COSTS[0],
        score: str = DEFAULT_SCORE,
        calibration: str | None = None,
        progress: Progress | None = None,
    ) -> Certificate:
        """Choose the thresholds that serve a target best on held-out rows, and set them.

        Every stage runs once on every row, and :func:`choose_thresholds` does the rest. Rows of
        the same texts or the same group stay together when some propose and others certify. Where
        nothing can be certified, the thresholds that come closest are set and the certificate says
        so. An error leaves the cascade as it was.

        Args:
            rows: are labelled, and no stage was trained on them; see :func:`as_rows`.
            target: is what is wanted, such as :class:`~cascadebert.MaxDrop`, or several that must
                hold at once. For :class:`~cascadebert.MinAgreement` the rows need no labels.
            confidence: is 1 minus the chance of a promise that does not hold. None asks for no
                promise, and for the best thresholds on these very rows.
            seed: draws the rows that propose.
            cost: is what a stage costs: "seconds" as measured by :meth:`measure_speed`, or in this
                call if it was not; or counted "flops" or "layers".
            score: names the confidence score, see :mod:`cascadebert.deferral.confidence`.
            calibration: fits each stage's calibration on these rows first: "temperature",
                "vector", "isotonic" or "none"; only without a promise. By default each stage keeps
                the calibration that it has.
            progress: is called with a number of rows after each batch, ``len(stages)`` times over
                for every row.

        Returns:
            What is promised, and the figures; ``self.policy`` has the frontier too.

        Raises:
            InputError: unusable rows, rows that a stage was trained on, labels that the cascade
                does not know, an unknown cost, score or calibration.
            TargetError: no promise is asked for and no thresholds meet the target.
        """
        state = tuning.tune(
            self._state,
            rows,
            target,
            confidence,
            seed=seed,
            cost=cost,
            score=score,
            calibration=calibration,
            progress=progress,
        )
        self._held = state
        assert state.record.certificate is not None
        return state.record.certificate

    def measure_speed(self, rows: Any, *, progress: Progress | None = None) -> None:
        """Measure how fast each stage is on this machine, for batches and for tuning.

        Takes some seconds per stage. The thresholds and what is promised of them stay.

        Args:
            rows: are like the rows that the cascade is for; labels are not used.
            progress: is called with 1 after each finished stage.
        """
        self._held = tuning.with_speeds(self._state, rows, progress)

    def run_stages(self, rows: Rows, *, progress: Progress | None = None) -> list[StageRun]:
        """Run every stage on every row, whatever the thresholds.

        Args:
            rows: are checked already.
            progress: see :meth:`tune`.
        """
        return [stage.run_all(rows, progress=progress) for stage in self._state.stages]

    def replay(
        self,
        rows: Rows,
        runs: Sequence[StageRun],
        *,
        cost: str = COSTS[0],
        with_labels: bool = True,
    ) -> Replay:
        """Try thresholds on what every stage has answered.

        Args:
            rows: are checked already.
            runs: come from :meth:`run_stages` for these rows.
            cost: is what a stage costs, see :meth:`tune`.
            with_labels: is False to judge answers by the last stage's instead of by labels.
        """
        return self._state.replay(rows, runs, cost, with_labels)

    def label_ids(self, rows: Rows) -> NDArray[np.int64]:
        """Class index of each row's label, int64 of shape (rows,).

        Raises:
            InputError: a label that the cascade does not know.
        """
        return self._state.label_ids(rows)

    # Classifying

    def predict(
        self,
        texts: Any,
        pairs: Sequence[str] | None = None,
        *,
        on_error: str = RAISE,
        progress: Progress | None = None,
    ) -> Prediction:
        """Classify rows.

        Args:
            texts: holds strings, (text, text_pair) tuples, mappings with text and text_pair, a
                ``datasets.Dataset`` or :class:`~cascadebert.Rows`.
            pairs: holds second texts, one for each string in ``texts``.
            on_error: says what happens to a row that cannot be classified: "raise" refuses all
                rows, "skip" leaves it out (see ``Prediction.row``), "null" gives it no label.
            progress: is called with the number of rows that have got their answer, as they get it.

        Raises:
            InputError: a row cannot be classified; nothing has run then.
        """
        state = self._state
        rows, kept, total = _usable(texts, pairs, on_error)
        windows = [
            _predict_window(state, rows.slice(start, start + DEFAULT_WINDOW), progress)
            for start in range(0, max(len(rows), 1), DEFAULT_WINDOW)
        ]
        return _placed(Prediction.joined(windows), kept, total, on_error)

    def predict_iter(
        self,
        rows: Iterable[Any],
        *,
        window: int = DEFAULT_WINDOW,
        on_error: str = RAISE,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Classify rows that do not fit in memory, a window at a time, in input order.

        Within a window the deferred rows are pooled and batched again for the next stage.

        Args:
            rows: is any iterable of what :meth:`predict` takes as one row, or
                :class:`~cascadebert.Rows`.
            window: is the number of rows in memory at a time; larger windows fill the batches of
                late stages better.
            on_error: see :meth:`predict`; numbers of rows count from the start of the stream.
            progress: see :meth:`predict`.

        Raises:
            InputError: ``rows`` is a string, or a row cannot be classified; the windows before it
                have been answered then.
        """
        if window < 1:
            raise InputError(f"a window of {window} rows holds nothing; give 1 or more")
        if isinstance(rows, str | bytes | Mapping):
            raise InputError(
                f"a {type(rows).__name__} is not a stream of rows; give an iterable of them"
            )
        _refuse_unknown_on_error(on_error)
        return self._predict_windows(self._state, rows, window, on_error, progress)

    def _predict_windows(
        self,
        state: State,
        rows: Iterable[Any],
        window: int,
        on_error: str,
        progress: Progress | None,
    ) -> Iterator[Prediction]:
        first = 0
        parts: Iterator[Any] = batched(rows, window)
        if isinstance(rows, Rows):
            parts = (rows.slice(start, start + window) for start in range(0, len(rows), window))
        for part in parts:
            usable, kept, total = _usable(part, None, on_error, first)
            out = _predict_window(state, usable, progress)
            yield _placed(out, kept, total, on_error, first)
            first += len(part)

    def predict_proba(self, texts: Any, pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Probabilities of shape (rows, classes), columns in the order of ``labels``.

        Each row's probabilities are those of the stage that answered.
        """
        return self.predict(texts, pairs).probabilities

    def __call__(self, texts: Any, pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Classify as transformers' text classification pipeline does.

        Returns:
            One ``{"label": name, "score": probability}`` per row; a list also for one string. The
            label is None where the cascade abstained.
        """
        out = self.predict(texts, pairs)
        scores = out.probabilities.max(axis=1)
        return [
            {"label": str(label) or None, "score": float(score)}
            for label, score in zip(out.labels, scores, strict=True)
        ]

    def _warn_of_other_engine(self) -> None:
        certificate = self.certificate
        then = certificate.versions if certificate else None
        if not then:
            return
        now = self.versions
        for name, remedy in (("runtime", "tune again"), ("processor", "tune again on this one")):
            if name in then and then[name] != now[name]:
                warnings.warn(
                    f"the thresholds were chosen with the {name} '{then[name]}' and this is "
                    f"'{now[name]}', which may round differently: what was promised does not hold "
                    f"for it; {remedy}",
                    CascadeWarning,
                    stacklevel=4,
                )


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def _refuse_unknown_on_error(on_error: str) -> None:
    if on_error not in ON_ERROR:
        raise InputError(f"on_error is {on_error!r}; give one of {', '.join(ON_ERROR)}")


def _usable(
    rows: Any, pairs: Sequence[str] | None, on_error: str, first: int = 0
) -> tuple[Rows, NDArray[np.int64], int]:
    """The rows that can be classified, their positions, and the number of all rows."""
    _refuse_unknown_on_error(on_error)
    if on_error == RAISE:
        checked = as_rows(rows, pairs, first=first)
        return checked, np.arange(len(checked)), len(checked)
    return usable_rows(rows, pairs)


def _placed(
    out: Prediction, kept: NDArray[np.int64], total: int, on_error: str, first: int = 0
) -> Prediction:
    """Answers with the numbers of their rows; with no answer for the others where asked."""
    return out.spread(kept, total, first) if on_error == NULL else out.numbered(kept + first)


def _predict_window(state: State, rows: Rows, progress: Progress | None) -> Prediction:
    _warn_of_other_kind(state, rows)
    routing = _routing_to_run(state)
    return classify(rows, state.stages, state.labels, routing, state.score, progress)


def _warn_of_other_kind(state: State, rows: Rows) -> None:
    certificate = state.record.certificate
    paired = certificate.paired if certificate else None
    if paired is not None and len(rows) and paired != (rows.pairs is not None):
        kinds = ("single texts", "pairs of texts")
        warnings.warn(
            f"these rows are {kinds[not paired]}, and the thresholds were chosen on "
            f"{kinds[paired]}: what was promised does not hold for them",
            CascadeWarning,
            stacklevel=4,
        )


def _routing_to_run(state: State) -> Thresholds:
    if state.record.routing is not None:
        return state.record.routing
    if len(state.stages) > 1:
        warnings.warn(
            "this cascade has no thresholds yet, so the last stage answers every row; "
            "call tune() with held-out rows, or set thresholds",
            CascadeWarning,
            stacklevel=4,
        )
    return Thresholds.last_stage_alone(len(state.stages))
