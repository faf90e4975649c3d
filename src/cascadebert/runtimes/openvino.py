"""OpenVINO on the CPU, in fp32, bfloat16 or int8."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadebert.disk import INT8_FILES, MODEL_FILE, file_hash, replacing
from cascadebert.errors import ArtifactError, CascadeWarning, MissingDependencyError, first_line
from cascadebert.machine import machine_name
from cascadebert.runtimes import CPU_TOKEN_BUDGETS, FP32, INT8

try:
    import openvino
except ModuleNotFoundError as error:
    missing = error.name or "openvino"
    raise MissingDependencyError(missing, "the runtime 'openvino'", "openvino") from None

CACHE_VARIABLE = "CASCADEBERT_CACHE"
"""Environment variable: the folder in which compiled int8 models are kept, for a faster start."""

_KEPT_SUFFIX = ".checked.blob"
_KERNELS_KEPT = 1_000
"""Kernels kept for shapes of batches. With OpenVINO's default of 5,000, varied batches make the
process half as large again; with 300, kernels are made again and again."""


class OpenVinoRuntime:
    """Runs ``model.onnx`` with the weights in ``model.safetensors`` beside it, or the int8 model.

    Operations that the int8 model leaves unquantised run in bfloat16.

    Args:
        folder: holds the stage.
        precision: "fp32", "bf16" or "int8".

    Raises:
        ArtifactError: OpenVINO cannot load the model.
    """

    token_budgets = CPU_TOKEN_BUDGETS

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        path = folder / (INT8_FILES[0] if precision == INT8 else MODEL_FILE)
        settings = {
            # One batch at a time on all cores.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32" if precision == FP32 else "bf16",
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS_KEPT,
        }
        try:
            model = _compiled(path, settings) if precision == INT8 else _compile(path, settings)
        except MemoryError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"{path}: OpenVINO cannot load it ({_cause(error)}); run it with another runtime, "
                "or build the cascade again"
            ) from error
        self._inputs = [value.any_name for value in model.inputs]
        self._model = model
        # A request serves one batch at a time.
        self._requests = threading.local()

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> Callable[[], NDArray[np.float32]]:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        inputs = {name: batch[name] for name in self._inputs}
        logits: NDArray[np.float32] = self._requests.own.infer(inputs, share_inputs=True)[0]
        return lambda: logits


def _compile(path: Path, settings: Mapping[str, Any]) -> openvino.CompiledModel:
    return openvino.Core().compile_model(path, "CPU", dict(settings))


def _compiled(path: Path, settings: Mapping[str, Any]) -> openvino.CompiledModel:
    """A compiled int8 model, kept in the folder ``$CASCADEBERT_CACHE`` if that is set.

    Its file is named after all that it depends on: the model's content, the settings, OpenVINO's
    version and the processor. It begins with the SHA-256 of the rest. It holds no weights; those
    are read from the stage.
    """
    folder = os.environ.get(CACHE_VARIABLE)
    if not folder:
        return _compile(path, settings)
    weights = path.with_suffix(".bin")
    settings = {**settings, "CACHE_MODE": "OPTIMIZE_SIZE"}
    depends_on = (
        file_hash(path),
        file_hash(weights),
        openvino.__version__,
        machine_name(),
        sorted(settings.items()),
    )
    kept = Path(folder, hashlib.sha256(repr(depends_on).encode()).hexdigest() + _KEPT_SUFFIX)
    if kept.exists():
        try:
            return openvino.Core().import_model(
                _checked(kept.read_bytes()), "CPU", {**settings, "WEIGHTS_PATH": str(weights)}
            )
        except (OSError, RuntimeError, ValueError) as error:
            _warn(f"{kept}: cannot be used and is made again ({_cause(error)})")
    model = _compile(path, settings)
    content = model.export_model().getvalue()
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError as error:
        _warn(f"{kept}: cannot be kept ({error}); set {CACHE_VARIABLE} to a folder to write to")
    return model


def _checked(kept: bytes) -> bytes:
    """A compiled model without the SHA-256 before it.

    Raises:
        ValueError: the SHA-256 is another.
    """
    size = hashlib.sha256().digest_size
    if hashlib.sha256(kept[size:]).digest() != kept[:size]:
        raise ValueError("damaged or changed: its SHA-256 differs")
    return kept[size:]


def _cause(error: Exception) -> str:
    """Why OpenVINO failed: the last line of its errors; the first ones say where."""
    return str(error).strip().rpartition("\n")[2][:200] or first_line(error)


def _warn(message: str) -> None:
    warnings.warn(message, CascadeWarning, stacklevel=2)
