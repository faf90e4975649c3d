"""Fitting the linear stage with scikit-learn; :mod:`cascadebert.stages.linear` runs it without."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix, diags, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cascadebert.disk import WEIGHTS_FILE
from cascadebert.errors import InputError
from cascadebert.export.linear import LINEAR, label_names_of, linear_record, write_config
from cascadebert.rows.rows import Rows, as_rows
from cascadebert.stages.linear import MODEL_TYPE, LinearStage
from cascadebert.stages.ngrams import (
    BLOCKS,
    BUCKET_BITS,
    MAX_CHARACTERS,
    feature_version,
    ngrams,
    normalise,
)
from cascadebert.training.fine_tuning import label_order
from cascadebert.training.outputs import Outputs

DEFAULT_C = 3.0
_ROWS_A_PART = 1_000
_MOST_ITERATIONS = 500


def fit_linear(
    rows: Rows,
    output: str | PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    c: float = DEFAULT_C,
    class_weights: Mapping[str, float] | str | None = None,
) -> Path:
    """Fit the linear stage and save it: ``config.json`` and ``model.safetensors``.

    Args:
        rows: training rows with labels, single texts or pairs.
        output: folder for the stage.
        labels: label names in the order of the logits; by default the sorted names in ``rows``.
            Each must have a row.
        c: inverse strength of the L2 penalty, as in scikit-learn.
        class_weights: by label name, or "balanced".

    Returns:
        ``output``.

    Raises:
        InputError: rows without labels, fewer than two labels, or labels that have no row or
            are not in ``labels``.
    """
    rows = as_rows(rows, with_labels=True)
    names = label_order(rows, labels)
    missing = sorted(set(names) - set(rows.labels or ()))
    if missing:
        raise InputError(f"labels {missing} have no row; a linear stage needs one of each label")
    truth = np.array([names.index(label) for label in rows.labels or ()])
    weights: Any = class_weights
    if isinstance(class_weights, Mapping):
        weights = {i: float(class_weights[name]) for i, name in enumerate(names)}
    matrices, buckets, rarity = _features(rows)
    model = LogisticRegression(C=c, max_iter=_MOST_ITERATIONS, class_weight=weights)
    with warnings.catch_warnings():
        # Stopping a little before the optimum costs nothing that could be measured.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrices, truth)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": MODEL_TYPE,
        "features": feature_version(),
        "bucket_bits": BUCKET_BITS,
        "pairs": rows.pairs is not None,
        "max_length": MAX_CHARACTERS,
        "trained_on": rows.texts_fingerprint(),
        **label_names_of(names),
    }
    write_config(folder, config)
    tensors = {
        "buckets": buckets.astype(np.int32),
        "rarity": rarity.astype(np.float32),
        "weights": np.ascontiguousarray(model.coef_.T, dtype=np.float32),
        "bias": model.intercept_.astype(np.float32),
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def linear_outputs(folder: str | PathLike[str], rows: Rows) -> Outputs:
    """Logits of a fitted linear stage, in its own label order."""
    record = linear_record(Path(folder), LINEAR)
    return Outputs(LinearStage(Path(folder), record, record.labels).run_all(rows).logits)


def _features(rows: Rows) -> tuple[csr_matrix, NDArray[np.int64], NDArray[np.float64]]:
    """The matrix (rows, buckets), which buckets its columns are, and their rarity."""
    counts = _counts(rows)
    together = sum(counts[1:], counts[0])
    found = np.bincount(together.indices, minlength=2**BUCKET_BITS)
    buckets = np.flatnonzero(found)
    rarity = np.log((1 + len(rows)) / (1 + found[buckets])) + 1
    features = csr_matrix((len(rows), len(buckets)))
    for block in counts:
        own = block[:, buckets]
        norms = np.sqrt(own @ rarity**2)
        scale = diags(1 / np.where(norms > 0, norms, 1))
        features = features + scale @ own @ diags(rarity)
    return features.tocsr(), buckets, rarity


def _counts(rows: Rows) -> list[csr_matrix]:
    """How often each bucket occurs in each row, a matrix a block."""
    parts: list[list[csr_matrix]] = [[] for _ in range(BLOCKS)]
    for start in range(0, len(rows), _ROWS_A_PART):
        part = normalise(rows.slice(start, start + _ROWS_A_PART))
        shape = (len(part.lengths), 2**BUCKET_BITS)
        sums = [csr_matrix(shape) for _ in range(BLOCKS)]
        for found in ngrams(part.texts, part.pairs):
            ones = np.ones(len(found.rows))
            sums[found.block] += csr_matrix((ones, (found.rows, found.buckets)), shape=shape)
        for block, counted in enumerate(sums):
            parts[block].append(counted)
    return [vstack(block, format="csr") for block in parts]
