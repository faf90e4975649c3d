"""The README.md of a saved cascade, in the form of a Hugging Face model card."""

from __future__ import annotations

from cascadebert.persistence.record import CascadeRecord

_HEADER = """---
library_name: cascadebert
pipeline_tag: text-classification
tags:
- cascade
- text-classification
---

# A cascade of {count} text classifiers

A row of text goes through the stages in their order and exits at the first one that is sure
of its answer; the last stage always answers.
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
    """Markdown that says what the cascade is made of and how it was tuned."""
    return "\n".join([_HEADER.format(count=len(record.stages)), _stages(record), _USE])


def _stages(record: CascadeRecord) -> str:
    last = f"above {record.abstain_threshold:.8g}" if record.abstain_threshold else "answers all"
    thresholds = [*(record.thresholds or ["not tuned"] * (len(record.stages) - 1)), last]
    lines = [
        "| stage | layers | parameters | reads at most | runs on | exits above |",
        "|---|---|---|---|---|---|",
    ]
    for number, (stage, threshold) in enumerate(zip(record.stages, thresholds, strict=True), 1):
        shown = f"{threshold:.8g}" if isinstance(threshold, float) else threshold
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
            f"The thresholds were chosen on held-out rows with the fingerprint "
            f"`{record.data_fingerprint[:16]}`."
        )
    return "\n".join(lines)
