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
from cascadebert.errors import ArtifactError, CascadeWarning, MissingDependencyError
from cascadebert.machine import machine_name
from cascadebert.runtimes import CPU_TOKEN_BUDGETS, FP32, INT8

try:
    import openvino
except ModuleNotFoundError as error:
    missing = error.name or "openvino"
    raise MissingDependencyError(missing, "the runtime 'openvino'", "openvino") from None

CACHE_VARIABLE = "CASCADEBERT_CACHE"
"""Names the folder in which compiled int8 models are kept, so that processes start faster."""

_KERNELS_KEPT = 1_000
"""What is prepared for a shape of batch is kept for the next. With OpenVINO's own 5,000, varied
batches make a process grow by another half; with 300, kernels are made again and again."""


class OpenVinoRuntime:
    """Runs ``model.onnx``, whose weights lie in ``model.safetensors`` beside it, or the int8 model.

    What is not quantised in the int8 model is calculated in bfloat16.
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
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError(
                f"{path}: OpenVINO cannot load it ({reason}); run it with another runtime, or "
                "build the cascade again"
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
    """A compiled int8 model, from ``$CASCADEBERT_CACHE`` if that is set and it lies there.

    It is kept under what it depends on: the model's content, settings, OpenVINO's version and the
    processor. Weights are not in it, but read from where they lie.
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
    kept = Path(folder, hashlib.sha256(repr(depends_on).encode()).hexdigest() + ".blob")
    if kept.exists():
        try:
            return openvino.Core().import_model(
                kept.read_bytes(), "CPU", {**settings, "WEIGHTS_PATH": str(weights)}
            )
        except RuntimeError as error:
            _warn(f"{kept}: cannot be used and is made again ({error})")
    model = _compile(path, settings)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            temporary.write_bytes(model.export_model().getvalue())
    except OSError as error:
        _warn(f"{kept}: cannot be kept ({error}); let {CACHE_VARIABLE} name a folder to write to")
    return model


def _warn(message: str) -> None:
    warnings.warn(message, CascadeWarning, stacklevel=2)
