"""A model that is opened when it is first needed, and anew in each process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascadebert.runtimes import Runtime, load_runtime, refuse_missing_engine


class LazyModel:
    """Opens a model on its first batch; satisfies :class:`~cascadebert.runtimes.Runtime`.

    After a fork the child opens its own: an engine's threads stay behind in the parent.

    Args:
        runtime: name in :data:`cascadebert.runtimes.RUNTIMES`.
        folder: of the model.
        threads: that the engine uses.

    Raises:
        MissingDependencyError: the runtime's package is not installed.
    """

    def __init__(self, runtime: str, folder: Path, threads: int) -> None:
        refuse_missing_engine(runtime)
        self._arguments = (runtime, folder, threads)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._opened: Runtime | None = None
        # A session that was opened before a fork must not be torn down after it.
        self._of_parent: Runtime | None = None

    def open(self) -> Runtime:
        """The opened model.

        Raises:
            ArtifactError: the model's files cannot be read.
        """
        if self._process != os.getpid():
            self._of_parent, self._opened = self._opened, None
            self._lock, self._process = threading.Lock(), os.getpid()
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = load_runtime(*self._arguments)
        return self._opened

    @property
    def token_budgets(self) -> tuple[int, ...]:
        return self.open().token_budgets

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> Callable[[], NDArray[np.float32]]:
        return self.open()(batch)
