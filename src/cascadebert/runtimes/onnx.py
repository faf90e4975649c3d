"""ONNX Runtime on the CPU, the default engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cascadebert.disk import MODEL_FILE
from cascadebert.errors import ArtifactError, first_line
from cascadebert.runtimes import CPU_TOKEN_BUDGETS

_ERRORS_ONLY = 3


class OnnxRuntime:
    """Runs ``model.onnx``, whose weights lie in ``model.safetensors`` beside it."""

    token_budgets = CPU_TOKEN_BUDGETS

    def __init__(self, folder: Path, precision: str, threads: int) -> None:  # noqa: ARG002
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS_ONLY
        # Batches come in many shapes. An arena grows with each new one and frees nothing.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        path = folder / MODEL_FILE
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except MemoryError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"{path}: ONNX Runtime cannot load it ({first_line(error)}); build the "
                "cascade again"
            ) from error
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> Callable[[], NDArray[np.float32]]:
        logits: NDArray[np.float32]
        (logits,) = self._session.run(None, {name: batch[name] for name in self._inputs})
        return lambda: logits
