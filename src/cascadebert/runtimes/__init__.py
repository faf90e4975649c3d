"""Token ids in, logits out: the engines that run a stage.

A runtime is one module here with one class. To add one, write the module and name it in
``RUNTIMES``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import InputError

RUNTIMES = {
    "onnx": ("cascadebert.runtimes.onnx", "OnnxRuntime", "onnxruntime"),
    "openvino": ("cascadebert.runtimes.openvino", "OpenVinoRuntime", "openvino"),
    "torch": ("cascadebert.runtimes.torch", "TorchRuntime", "torch"),
}
"""By name: module, class, and the package that does the work."""


class Runtime(Protocol):
    """One loaded model."""

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Run one padded batch.

        Args:
            batch: ``input_ids``, ``attention_mask`` and, for models that take them,
                ``token_type_ids``, each int64 of shape (rows, tokens).

        Returns:
            Logits, float32 of shape (rows, classes), in the model's own label order.
        """
        ...


def runtime_versions(name: str) -> dict[str, str]:
    """Versions of what decides a stage's answers when this runtime runs it."""
    package = RUNTIMES[name][2]
    names = ("cascadebert", "tokenizers", package)
    return {"runtime": name} | {known: importlib.metadata.version(known) for known in names}


def load_runtime(name: str, folder: Path) -> Runtime:
    """Load the model in ``folder`` with the runtime called ``name``.

    Raises:
        InputError: no runtime has this name.
        ArtifactError: the model's files cannot be read.
        MissingDependencyError: the runtime's package is not installed.
    """
    if name not in RUNTIMES:
        raise InputError(f"no runtime is called {name!r}; there are {', '.join(RUNTIMES)}")
    module, attribute, _ = RUNTIMES[name]
    return cast(Runtime, getattr(importlib.import_module(module), attribute)(folder))
