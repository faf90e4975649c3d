"""The engines that run a transformer: token ids in, logits out.

A runtime is one class in a module of its own here. To add one, write the module and list it in
``ENGINES``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import CascadeWarning, InputError, MissingDependencyError
from cascadebert.machine import thread_count

FP32, BF16, INT8 = "fp32", "bf16", "int8"
AUTO = "auto"
"""Runs each stage on the runtime that did best when the stage was exported."""


@dataclass(frozen=True)
class Engine:
    """What runs a stage's model.

    Attributes:
        module, attribute: where its class is.
        package: what does the work.
        precisions: numbers that it can calculate with.
        also_needs: packages beside ``package`` that it imports.
    """

    module: str
    attribute: str
    package: str
    precisions: tuple[str, ...]
    also_needs: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The packages without which it does not run."""
        return (self.package, *self.also_needs)


ENGINES = {
    "onnx": Engine("cascadebert.runtimes.onnx", "OnnxRuntime", "onnxruntime", (FP32,)),
    "openvino": Engine(
        "cascadebert.runtimes.openvino", "OpenVinoRuntime", "openvino", (FP32, BF16, INT8)
    ),
    "torch": Engine(
        "cascadebert.runtimes.torch", "TorchRuntime", "torch", (FP32, BF16), ("transformers",)
    ),
}
RUNTIMES = {
    name if precision == FP32 else f"{name}-{precision}": (engine, precision)
    for name, engine in ENGINES.items()
    for precision in engine.precisions
}
"""Maps a name, for example "openvino-int8", to an engine and its precision."""


CPU_TOKEN_BUDGETS = (512, 1024, 2048, 4096)
ACCELERATOR_TOKEN_BUDGETS = (4096, 16_384, 65_536)


class Runtime(Protocol):
    """One loaded model."""

    @property
    def token_budgets(self) -> tuple[int, ...]:
        """Batch sizes to try, in tokens, ascending; the second is used until they are timed."""
        ...

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> Callable[[], NDArray[np.float32]]:
        """Start one batch.

        Args:
            batch: ``input_ids``, ``attention_mask`` and, for models that take them,
                ``token_type_ids``, each int64 of shape (rows, tokens).

        Returns:
            A function that waits for the batch and returns its logits, float32 of shape (rows,
            classes), in the model's own label order. More batches may start before it is called.
        """
        ...


def runtime_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that decide the answers.

    Args:
        names: are the runtimes of the transformers, one per stage.
    """
    runtimes = list(names)
    packages = {RUNTIMES[name][0].package for name in runtimes}
    shown = ("cascadebert", "tokenizers", *sorted(packages))
    together = " ".join(dict.fromkeys(runtimes)) or "none"
    return {"runtime": together} | {name: importlib.metadata.version(name) for name in shown}


def refuse_unknown_runtime(name: str) -> None:
    """Refuse a name that is neither a runtime nor "auto".

    >>> refuse_unknown_runtime("onnx")

    Raises:
        InputError: the name is unknown.
    """
    if name not in (AUTO, *RUNTIMES):
        names = ", ".join((AUTO, *RUNTIMES))
        raise InputError(f"no runtime is called {name!r}; there are {names}")


def runtime_for(chosen: str, best: str, stage: str) -> str:
    """The runtime that a stage is to be run by.

    Args:
        chosen: a name in :data:`RUNTIMES`, or "auto" for ``best``, or where its engine is not
            installed, for "onnx", with a warning.
        best: what the stage was measured best with.
        stage: name of the stage, for the warning.
    """
    if chosen != AUTO:
        return chosen
    try:
        refuse_missing_engine(best)
    except MissingDependencyError as error:
        warnings.warn(
            f"stage '{stage}' was measured best with {best}; it runs in fp32 on ONNX Runtime, "
            f"slower and not bit for bit the same ({error}; or choose the runtime 'onnx' yourself)",
            CascadeWarning,
            stacklevel=2,
        )
        return "onnx"
    return best


def refuse_missing_engine(name: str) -> None:
    """Refuse a runtime whose packages are not installed; nothing is imported.

    Raises:
        MissingDependencyError: see above.
    """
    package = missing_package(name)
    if package is not None:
        engine, _ = RUNTIMES[name]
        extra = "train" if engine.package == "torch" else engine.package
        raise MissingDependencyError(package, f"the runtime '{name}'", extra)


def missing_package(name: str) -> str | None:
    """The first package that a runtime needs and that is not installed; None if all are."""
    engine, _ = RUNTIMES[name]
    return next((package for package in engine.needs if not _is_installed(package)), None)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def load_runtime(name: str, folder: Path, threads: int | None = None) -> Runtime:
    """Load the model in ``folder`` with the runtime called ``name``, on so many threads.

    Raises:
        ArtifactError: the model's files cannot be read.
        MissingDependencyError: the runtime's package is not installed.
    """
    engine, precision = RUNTIMES[name]
    module = importlib.import_module(engine.module)
    return cast(
        Runtime, getattr(module, engine.attribute)(folder, precision, thread_count(threads))
    )
