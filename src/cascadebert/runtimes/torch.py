"""PyTorch with the checkpoint's own modelling code, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import MissingDependencyError

try:
    import torch
    from transformers import AutoModelForSequenceClassification

    from cascadebert.training.logs import quiet
except ModuleNotFoundError as error:
    raise MissingDependencyError(error.name or "torch", "the runtime 'torch'", "train") from None


class TorchRuntime:
    """Runs ``model.safetensors`` on the machine's accelerator, or else on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        with quiet():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        self._model = model.eval().to(self.device)

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        tensors = {name: torch.from_numpy(ids).to(self.device) for name, ids in batch.items()}
        with torch.inference_mode():
            logits = self._model(**tensors).logits
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result
