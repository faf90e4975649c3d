"""Label names that stages share, whatever their order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cascadebert.errors import LabelMismatchError


def same_labels(
    stages: Sequence[tuple[str, Sequence[str]]],
) -> tuple[str, ...]:
    """The label names that all stages share, in the order of the last stage.

    Args:
        stages: name and label names of each stage; their orders may differ.

    Raises:
        LabelMismatchError: two stages differ in more than order; the message shows both lists and
            how to map one to the other.
    """
    last_name, last_labels = stages[-1]
    for number, (name, labels) in enumerate(stages[:-1], start=1):
        if set(labels) != set(last_labels) or len(labels) != len(last_labels):
            raise LabelMismatchError(
                f"stage {number} '{name}' has the labels {list(labels)}, stage {len(stages)} "
                f"'{last_name}' has {list(last_labels)}; if they mean the same, map them: "
                f"{_mapping_hint(stages, number)}"
            )
    return tuple(last_labels)


def _mapping_hint(stages: Sequence[tuple[str, Sequence[str]]], number: int) -> str:
    # The side with placeholders is the one to rename.
    if are_placeholders(stages[-1][1]):
        number, labels = len(stages), stages[-1][1]
    else:
        labels = stages[number - 1][1]
    pairs = ",".join(f"{label}=NAME" for label in labels[:3])
    more = ",…" if len(labels) > 3 else ""
    return f"--map-labels '{number}:{pairs}{more}' (in Python label_maps={{{number}: {{...}}}})"


def are_placeholders(labels: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives when nobody named the classes."""
    return all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
