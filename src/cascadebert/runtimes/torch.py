"""PyTorch with the checkpoint's own modelling code, in fp32 or bfloat16."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascadebert.errors import (
    CascadeError,
    CascadeWarning,
    MissingDependencyError,
    first_line,
)
from cascadebert.machine import thread_count
from cascadebert.runtimes import ACCELERATOR_TOKEN_BUDGETS, BF16, CPU_TOKEN_BUDGETS

try:
    import torch
    from transformers import AutoModelForSequenceClassification

    from cascadebert.runtimes.quiet import quiet
except ModuleNotFoundError as error:
    raise MissingDependencyError(error.name or "torch", "the runtime 'torch'", "train") from None


# OpenMP's threads stay behind in the parent of a fork, and a child that waits for them hangs.
_PROCESS = os.getpid()


@contextmanager
def limited_threads(wanted: int | None) -> Iterator[None]:
    """Let torch use so many threads in the block; a single one in the child of a fork."""
    before = torch.get_num_threads()
    if os.getpid() != _PROCESS:
        if before > 1:
            torch.set_num_threads(1)
            warnings.warn(
                "this process was forked after torch was loaded, so the runtime 'torch' uses one "
                "thread; start processes with 'spawn', or use the runtime 'onnx' or 'openvino'",
                CascadeWarning,
                stacklevel=2,
            )
        yield
    elif wanted in (None, before):
        yield
    else:
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def available_device() -> torch.device:
    """Return the machine's accelerator, or the CPU if it has none.

    Raises:
        CascadeError: the accelerator cannot be used.
    """
    # Without the check torch names the accelerator that it was built for.
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.ones(1, device=device)
    except RuntimeError as error:
        raise CascadeError(
            f"torch cannot use the accelerator '{device}' ({first_line(error)}); free or repair "
            "it, or run on the CPU: hide it with CUDA_VISIBLE_DEVICES='', or install a CPU build "
            "of torch"
        ) from None
    return device


class ModelRuntime:
    """Runs a classifier on the machine's accelerator, or else on the CPU.

    On an accelerator a batch is begun without waiting for the one before, so that it has work
    while the host reads the logits and puts the next batch together.

    Args:
        model: takes what the tokenizer made by name, and gives something with ``logits``.
        threads: that the CPU uses; see :func:`~cascadebert.machine.thread_count`.
    """

    def __init__(self, model: torch.nn.Module, threads: int | None = None) -> None:
        self.device = available_device()
        self._model = model.eval().to(self.device)
        on_cpu = self.device.type == "cpu"
        self._threads = thread_count(threads) if on_cpu else None
        self.token_budgets = CPU_TOKEN_BUDGETS if on_cpu else ACCELERATOR_TOKEN_BUDGETS

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> Callable[[], NDArray[np.float32]]:
        tensors = {
            name: torch.from_numpy(ids).to(self.device, non_blocking=True)
            for name, ids in batch.items()
        }
        with limited_threads(self._threads), torch.inference_mode():
            logits = self._model(**tensors).logits.float()

        def wait() -> NDArray[np.float32]:
            result: NDArray[np.float32] = logits.cpu().numpy()
            return result

        return wait


class TorchRuntime(ModelRuntime):
    """Runs ``model.safetensors`` in a folder."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        with limited_threads(threads), quiet():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.bfloat16 if precision == BF16 else torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        super().__init__(model, threads)
