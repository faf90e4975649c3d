"""A cascade with scikit-learn's manners."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from transformers import TrainingArguments

from cascadebert.cascade import Cascade
from cascadebert.deferral.targets import Target
from cascadebert.errors import InputError
from cascadebert.rows.rows import Rows, as_rows
from cascadebert.training.recipe import Recipe
from cascadebert.training.trainer import CascadeTrainer, PlanProgress


class CascadeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """``fit(texts, labels)`` trains a cascade, ``predict(texts)`` runs it.

    Args:
        stages: pre-trained checkpoints, small to large; "linear" for the linear stage.
        recipe: the loss and what it needs, see :class:`~cascadebert.Recipe`.
        target: what the thresholds are chosen for, one or several at once; by default at most
            half a point of accuracy.
        args: ``TrainingArguments`` of every stage.
        validation_share: share of the rows that is kept back, like shares of every class, for
            the calibrations and thresholds.
        output_dir: where what is done is kept, so that a fit that was cut off goes on; by
            default a folder that is removed.
        random_state: of the rows that are kept back.
        progress: called with what is being done and the share of the whole that is done.

    Attributes:
        classes_: the labels as they were given, sorted, shape (classes,).
        cascade_: the trained :class:`~cascadebert.Cascade`.
        report_: plain values of what was done and measured.
    """

    def __init__(
        self,
        stages: Sequence[str | PathLike[str]],
        *,
        recipe: Recipe | None = None,
        target: Target | Sequence[Target] | None = None,
        args: TrainingArguments | None = None,
        validation_share: float = 0.15,
        output_dir: str | PathLike[str] | None = None,
        random_state: int = 0,
        progress: PlanProgress | None = None,
    ) -> None:
        self.stages = stages
        self.recipe = recipe
        self.target = target
        self.args = args
        self.validation_share = validation_share
        self.output_dir = output_dir
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: ArrayLike) -> Self:  # noqa: N803
        """Train on texts, or (text, text_pair) tuples, of shape (rows,), with labels (rows,).

        Raises:
            InputError: rows or settings that cannot be trained with.
        """
        labels = np.asarray(y)
        texts = as_rows(_listed(X))
        if labels.shape != (len(texts),):
            raise InputError(
                f"labels have the shape {labels.shape} for {len(texts)} rows; give one a row"
            )
        rows = Rows(texts.texts, texts.pairs, labels.tolist())
        self.classes_ = np.unique(labels)
        train, kept = self._split(rows)
        with tempfile.TemporaryDirectory(prefix="cascadebert-") as scratch:
            trainer = CascadeTrainer(
                self.stages,
                self.args,
                train,
                kept,
                recipe=self.recipe,
                target=self.target,
                output_dir=self.output_dir or scratch,
                progress=self.progress,
            )
            self.cascade_: Cascade = trainer.train()
        self.report_ = trainer.report
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The label of each row, as given to :meth:`fit`, shape (rows,).

        It is None where the cascade abstains; the array then has the dtype object.
        """
        check_is_fitted(self)
        out = self.cascade_.predict(_listed(X))
        labels: NDArray[Any] = self.classes_[self._in_own_order(out.probabilities).argmax(axis=1)]
        return np.where(out.abstained, None, labels) if out.abstained.any() else labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities of shape (rows, classes), columns in the order of ``classes_``."""
        check_is_fitted(self)
        return self._in_own_order(self.cascade_.predict_proba(_listed(X)))

    def _in_own_order(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [self.cascade_.labels.index(str(label)) for label in self.classes_.tolist()]
        return probabilities[:, columns]

    def _split(self, rows: Rows) -> tuple[Rows, Rows]:
        try:
            train, kept = train_test_split(
                np.arange(len(rows)),
                test_size=self.validation_share,
                random_state=self.random_state,
                stratify=rows.labels,
            )
        except ValueError as error:
            raise InputError(
                f"{self.validation_share} of {len(rows)} rows cannot be kept back with rows of "
                f"every class ({error}); give more rows or another validation_share"
            ) from None
        return rows.take(train), rows.take(kept)


def _listed(rows: Any) -> Any:
    return rows.tolist() if hasattr(rows, "tolist") else rows
