"""OpenVINO on the CPU, in fp32, bfloat16 or int8."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascadebert.artifact import INT8_FILES, MODEL_FILE
from cascadebert.errors import ArtifactError, MissingDependencyError
from cascadebert.machine import usable_cores
from cascadebert.runtimes import CPU_TOKEN_BUDGETS, FP32, INT8

try:
    import openvino
except ModuleNotFoundError as error:
    missing = error.name or "openvino"
    raise MissingDependencyError(missing, "the runtime 'openvino'", "openvino") from None


class OpenVinoRuntime:
    """Runs ``model.onnx``, whose weights lie in ``model.safetensors`` beside it, or the int8 model.

    What is not quantised in the int8 model is calculated in bfloat16.
    """

    token_budgets = CPU_TOKEN_BUDGETS

    def __init__(self, folder: Path, precision: str) -> None:
        path = folder / (INT8_FILES[0] if precision == INT8 else MODEL_FILE)
        settings = {
            # One batch at a time on all cores.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores(),
            "INFERENCE_PRECISION_HINT": "f32" if precision == FP32 else "bf16",
        }
        try:
            model = openvino.Core().compile_model(path, "CPU", settings)
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
