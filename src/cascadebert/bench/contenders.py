"""The contenders of a benchmark: the cascade, stages alone, other engines, pipelines, commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cascadebert.bench.result import CASCADE, COMMAND, PIPELINE, STAGE
from cascadebert.cascade import Cascade
from cascadebert.errors import InputError
from cascadebert.rows.rows import listed
from cascadebert.runtimes import missing_package
from cascadebert.stages.transformer import TransformerStage

_ENGINES = {
    "onnx": "fp32 ONNX Runtime",
    "openvino-bf16": "OpenVINO bf16",
    "torch-bf16": "torch bf16",
}
_BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Contender:
    """One contender.

    Attributes:
        name: unique name; for a command the command itself.
        kind: "cascade", "stage", "pipeline" or "command".
        runtime: name of its runtime; for a cascade one name per stage; None for others.
        recipe: arguments of :func:`cascadebert.bench.worker.load`.
    """

    name: str
    kind: str
    runtime: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def reference_name(cascade: Cascade) -> str:
    """Name of the reference of all ratios: the last stage alone."""
    return f"{stage_names(cascade)[-1]} alone"


def contenders(
    cascade: Cascade, against: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[Contender]:
    """List all contenders of :func:`~cascadebert.bench.bench.bench`, in order.

    Args:
        cascade: is timed.
        against: are shell commands.
        skip: leaves out contenders with one of these texts in their names.

    Raises:
        InputError: an entry of ``skip`` would leave out the reference, or matches no name.
    """
    names = stage_names(cascade)
    last = len(names)
    found = [_cascade(cascade), _alone(cascade, last)]
    if isinstance(cascade.stages[-1], TransformerStage):
        found += [
            _alone(cascade, last, runtime)
            for runtime in _ENGINES
            if missing_package(runtime) is None and runtime != cascade.stages[-1].runtime
        ]
        if missing_package("torch") is None:
            found += [_pipeline(names[-1], last, size) for size in _BATCH_SIZES]
    found += [_alone(cascade, number) for number in range(last - 1, 0, -1)]
    found += [Contender(command, COMMAND) for command in dict.fromkeys(against)]
    for text in skip:
        if text in reference_name(cascade):
            raise InputError(
                f"skipping {text!r} would leave out '{reference_name(cascade)}', which all ratios "
                "are against; use a longer text"
            )
        if not any(text in contender.name for contender in found):
            names = [contender.name for contender in found]
            raise InputError(f"no contender has {text!r} in its name: {listed(names, 12)}")
    return [c for c in found if not any(text in c.name for text in skip)]


def stage_names(cascade: Cascade) -> list[str]:
    """Names of the stages, with their numbers where two are equal."""
    names = [stage.name for stage in cascade.stages]
    if len(set(names)) < len(names):
        return [f"{number}-{name}" for number, name in enumerate(names, start=1)]
    return names


def _cascade(cascade: Cascade) -> Contender:
    stages = cascade.stages
    return Contender(
        CASCADE,
        CASCADE,
        " ".join(stage.runtime for stage in stages),
        _recipe(range(1, len(stages) + 1), (stage.runtime for stage in stages)),
    )


def _alone(cascade: Cascade, number: int, runtime: str | None = None) -> Contender:
    name = f"{stage_names(cascade)[number - 1]} alone"
    stage = cascade.stages[number - 1]
    return Contender(
        f"{name}, {_ENGINES[runtime]}" if runtime else name,
        STAGE,
        runtime or stage.runtime,
        _recipe([number], [runtime or stage.runtime]),
    )


def _recipe(stages: Iterable[int], runtimes: Iterable[str]) -> dict[str, Any]:
    return {"stages": list(stages), "runtimes": list(runtimes)}


def _pipeline(name: str, number: int, size: int) -> Contender:
    return Contender(
        f"{name}, transformers pipeline, batch {size}",
        PIPELINE,
        recipe={"number": number, "batch_size": size},
    )
