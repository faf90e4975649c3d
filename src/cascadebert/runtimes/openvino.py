"""OpenVINO on the CPU, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascadebert.artifact import MODEL_FILE
from cascadebert.errors import ArtifactError, MissingDependencyError

try:
    import openvino
except ModuleNotFoundError as error:
    missing = error.name or "openvino"
    raise MissingDependencyError(missing, "the runtime 'openvino'", "openvino") from None

# One batch at a time on all cores, in fp32 throughout.
_SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoRuntime:
    """Runs ``model.onnx``, whose weights lie in ``model.safetensors`` beside it."""

    def __init__(self, folder: Path) -> None:
        path = folder / MODEL_FILE
        try:
            model = openvino.Core().compile_model(path, "CPU", _SETTINGS)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError(
                f"{path}: OpenVINO cannot load it ({reason}); run it with another engine, or "
                "build the cascade again"
            ) from error
        self._inputs = [value.any_name for value in model.inputs]
        self._request = model.create_infer_request()

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        inputs = {name: batch[name] for name in self._inputs}
        # The request keeps its output buffer, and fills it again with the next batch.
        logits: NDArray[np.float32] = self._request.infer(inputs, share_inputs=True)[0].copy()
        return logits
