"""Loading a stage of the kind that its record names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from cascadebert.persistence.record import StageRecord
from cascadebert.stages.base import Stage
from cascadebert.stages.linear import LinearStage
from cascadebert.stages.transformer import TransformerStage

STAGE_KINDS: dict[str, type[Stage]] = {"transformer": TransformerStage, "linear": LinearStage}


def load_stage(
    folder: Path,
    record: StageRecord,
    labels: Sequence[str],
    runtime: str,
    threads: int | None = None,
    scratch: tempfile.TemporaryDirectory[str] | None = None,
) -> Stage:
    """Load a stage of the kind that its record names.

    Args:
        folder: holds the stage's files.
        record: is what ``cascade.json`` says of the stage.
        labels: name the cascade's labels, in the order of its logits.
        runtime: runs a transformer; a name in :data:`cascadebert.runtimes.RUNTIMES`.
        threads: limits the threads of its engine, see :func:`~cascadebert.machine.thread_count`.
        scratch: is the temporary folder that ``folder`` lies in, if it lies in one.
    """
    return STAGE_KINDS[record.kind](folder, record, labels, runtime, threads, scratch)
