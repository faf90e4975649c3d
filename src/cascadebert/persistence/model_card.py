"""The README.md of a saved cascade, in the form of a Hugging Face model card."""

from __future__ import annotations

from cascadebert.deferral.routing import NEVER_EXIT
from cascadebert.persistence.record import CascadeRecord

_HEADER = """---
library_name: cascadebert
pipeline_tag: text-classification
tags:
- cascade
- text-classification
---

# A cascade of text classifiers: {names}

{routing}
"""

_USE = """
## Use

```python
from cascadebert import Cascade

cascade = Cascade.from_pretrained("path/to/this/folder")
out = cascade.predict(["some text"])
print(out.labels, out.stage, out.confidence)
```
"""


def model_card(record: CascadeRecord) -> str:
    """Markdown that describes the stages of a cascade and how it was tuned."""
    names = ", ".join(stage.name for stage in record.stages)
    header = _HEADER.format(names=names, routing=_routing(record))
    return "\n".join([header, _stages(record), _USE])


def _routing(record: CascadeRecord) -> str:
    """Which way rows take through the stages, as prose."""
    stages = len(record.stages)
    if record.abstain_threshold:
        last = (
            "A row that reaches the last stage gets no answer if its confidence there is not above "
            f"{record.abstain_threshold:.8g}."
        )
    else:
        last = "The last stage answers every row that reaches it."
    if stages == 1:
        return last
    if record.thresholds is None:
        return "The cascade is not tuned: until it is, the last stage answers every row."
    skips = [
        f"at or below {threshold:.8g} in stage {number}"
        for number, threshold in enumerate(record.skip_thresholds, start=1)
        if threshold > 0
    ]
    return " ".join(
        [
            "A row of text goes through the stages in order and exits at the first one whose "
            "confidence is above its threshold.",
            *([f"A confidence {' or '.join(skips)} sends it to the last stage."] if skips else []),
            last,
        ]
    )


def _stages(record: CascadeRecord) -> str:
    last = f"{record.abstain_threshold:.8g}" if record.abstain_threshold else "answers all"
    if record.thresholds is None:
        exits = ["not tuned"] * (len(record.stages) - 1)
    else:
        exits = [f"{t:.8g}" if t < NEVER_EXIT else "not run" for t in record.thresholds]
    lines = [
        "| stage | layers | parameters | truncates at | runs on | exits above |",
        "|---|---|---|---|---|---|",
    ]
    for number, (stage, shown) in enumerate(zip(record.stages, [*exits, last], strict=True), 1):
        lines.append(
            f"| {number} {stage.name} | {stage.cost.layers} | {stage.cost.parameters / 1e6:.1f} M "
            f"| {stage.max_length} {stage.length_unit} | {stage.runtime} | {shown} |"
        )
    labels = ", ".join(f"`{label}`" for label in record.labels[:20])
    more = f" and {len(record.labels) - 20} more" if len(record.labels) > 20 else ""
    lines += ["", f"Labels: {labels}{more}.", f"Confidence score: {record.score}."]
    if record.certificate:
        lines += ["", record.certificate.words(), ""]
    if record.data_fingerprint:
        lines.append(
            "The thresholds were chosen on held-out rows with the fingerprint "
            f"`{record.data_fingerprint[:16]}`."
        )
    return "\n".join(lines)
