"""A cascade as a scikit-learn classifier."""

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
    """A scikit-learn classifier: ``fit`` trains a cascade, ``predict`` runs it.

    Args:
        stages: names pre-trained checkpoints, small to large; "linear" is the linear stage.
        recipe: sets the loss and what it needs, see :class:`~cascadebert.Recipe`.
        target: sets one or more targets for the thresholds; by default an accuracy drop of at
            most 0.005.
        args: sets ``TrainingArguments`` of every stage.
        validation_share: sets the share of the rows held out for calibration and thresholds,
            stratified by class.
        output_dir: names the folder for finished parts, from which an interrupted fit continues;
            by default a temporary folder.
        random_state: seeds the choice of the held-out rows.
        progress: is called with the current task and the share of the work done, 0 to 1.

    Attributes:
        classes_: the labels as given to :meth:`fit`, sorted, shape (classes,).
        cascade_: the trained :class:`~cascadebert.Cascade`.
        report_: what was done and measured, as plain values.

    Examples:
        >>> texts = ["good film", "nice film", "bad film", "poor film"] * 10
        >>> texts = [f"{text} {number}" for number, text in enumerate(texts)]
        >>> model = CascadeClassifier(stages=["linear"])
        >>> model = model.fit(texts, ["yes", "yes", "no", "no"] * 10)
        >>> model.predict(["nice", "poor"])
        array(['yes', 'no'], dtype='<U3')
        >>> model.predict_proba(["nice", "poor"]).shape
        (2, 2)
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
        """Train the cascade.

        Args:
            X: gives texts, or (text, text_pair) tuples, shape (rows,).
            y: gives the labels, shape (rows,).

        Raises:
            InputError: the rows or the settings are invalid.
        """
        labels = np.asarray(y)
        texts = as_rows(_listed(X))
        if labels.shape != (len(texts),):
            raise InputError(
                f"labels have the shape {labels.shape} for {len(texts)} rows; give one per row"
            )
        rows = Rows(texts.texts, texts.pairs, labels.tolist(), texts.group)
        self.classes_ = np.unique(labels)
        train, validation = self._split(rows)
        with tempfile.TemporaryDirectory(prefix="cascadebert-") as scratch:
            trainer = CascadeTrainer(
                self.stages,
                self.args,
                train,
                validation,
                recipe=self.recipe,
                target=self.target,
                output_dir=self.output_dir or scratch,
                progress=self.progress,
            )
            self.cascade_: Cascade = trainer.train()
        self.report_ = trainer.report
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Predict the label of each row.

        Args:
            X: gives texts, or (text, text_pair) tuples, shape (rows,).

        Returns:
            Labels as given to :meth:`fit`, shape (rows,). A label is None where the cascade
            abstains; the array then has the dtype object.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
        """
        check_is_fitted(self)
        out = self.cascade_.predict(_listed(X))
        labels: NDArray[Any] = self.classes_[self._in_own_order(out.probabilities).argmax(axis=1)]
        if out.abstained.any():
            labels = labels.astype(object)
            labels[out.abstained] = None
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Predict the probability of each class.

        Args:
            X: gives texts, or (text, text_pair) tuples, shape (rows,).

        Returns:
            float64 of shape (rows, classes), with the columns in the order of ``classes_``.

        Raises:
            NotFittedError: :meth:`fit` has not been called.
        """
        check_is_fitted(self)
        return self._in_own_order(self.cascade_.predict_proba(_listed(X)))

    def _in_own_order(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = [self.cascade_.labels.index(str(label)) for label in self.classes_.tolist()]
        return probabilities[:, columns]

    def _split(self, rows: Rows) -> tuple[Rows, Rows]:
        try:
            train, held_out = train_test_split(
                np.arange(len(rows)),
                test_size=self.validation_share,
                random_state=self.random_state,
                stratify=rows.labels,
            )
        except ValueError as error:
            raise InputError(
                f"{self.validation_share} of {len(rows)} rows cannot be held out with rows of "
                f"every class ({error}); give more rows or another validation_share"
            ) from None
        return rows.take(train), rows.take(held_out)


def _listed(rows: Any) -> Any:
    return rows.tolist() if hasattr(rows, "tolist") else rows
