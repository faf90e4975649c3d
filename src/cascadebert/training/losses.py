"""Loss terms: what a stage is trained to minimise.

A term is a small frozen dataclass. It validates its values, names the columns it needs and adds
itself to the loss of a batch. :class:`~cascadebert.Objective` combines terms.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor

from cascadebert.errors import InputError
from cascadebert.training.distillation import hidden_state_loss, logit_loss

SCORES = ("probability", "log_odds")

_Range = tuple[Callable[[float], bool], str]
_SHARE: _Range = (lambda x: 0 <= x <= 1, "a number from 0 to 1")
_BELOW_ONE: _Range = (lambda x: 0 <= x < 1, "0 or more, below 1")
_NOT_NEGATIVE: _Range = (lambda x: 0 <= x < math.inf, "a finite number, 0 or more")
_POSITIVE: _Range = (lambda x: 0 < x < math.inf, "a finite number above 0")


@dataclass(frozen=True)
class Batch:
    """What a loss may read of one batch.

    Attributes:
        logits: logits of the stage in training, float of shape (rows, classes).
        labels: class indices, int64 of shape (rows,).
        class_weights: weights for cross-entropy, float of shape (classes,).
        difficulty: difficulty of each row, float of shape (rows,); larger is harder.
        teacher_logits: logits of the last stage, float of shape (rows, classes).
        student_states: first-token hidden states of the stage in training, float of shape
            (rows, layers, width).
        teacher_states: matching states of the last stage, same shape.
        done: share of the training steps already taken, 0 to 1.
        generator: CPU generator that draws the pairs of :class:`DAR`.

    Examples:
        >>> Batch(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])).done
        1.0
    """

    logits: Tensor
    labels: Tensor
    class_weights: Tensor | None = None
    difficulty: Tensor | None = None
    teacher_logits: Tensor | None = None
    student_states: Tensor | None = None
    teacher_states: Tensor | None = None
    done: float = 1.0
    generator: torch.Generator | None = None


def _setting(keyword: str, default: float, allowed: _Range) -> Any:
    """A number of a term: its keyword in an objective, its default and its range."""
    return dataclasses.field(default=default, metadata={"keyword": keyword, "allowed": allowed})


@dataclass(frozen=True)
class LossTerm:
    """One term of an :class:`~cascadebert.Objective`, which calls it ``name``."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "allowed" in field.metadata:
                number = _in_range(getattr(self, field.name), **field.metadata)
                object.__setattr__(self, field.name, number)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of :class:`Batch` that the term cannot do without."""
        return ()

    def add(self, loss: Tensor, batch: Batch) -> Tensor:
        """The scalar loss with this term.

        Args:
            loss: gives the scalar loss of the terms before this one.
            batch: holds the rows.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Values of the fields by the keywords of the objective, ready for JSON."""
        return {keyword: getattr(self, field) for field, keyword in self.keywords().items()}

    @classmethod
    def keywords(cls) -> dict[str, str]:
        """The keyword of the objective for each field."""
        fields = dataclasses.fields(cls)
        return {field.name: field.metadata.get("keyword", field.name) for field in fields}


@dataclass(frozen=True)
class CrossEntropy(LossTerm):
    """Cross-entropy with the labels.

    Attributes:
        label_smoothing: share of the label mass that is spread over all classes, 0 to below 1.
        class_weights: weight of each class by label name, or "balanced" for weights in inverse
            proportion to the number of rows.

    Raises:
        InputError: a value is out of its range.

    Examples:
        >>> batch = Batch(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
        >>> round(CrossEntropy().add(torch.tensor(0.0), batch).item(), 3)
        0.693
    """

    label_smoothing: float = _setting("label_smoothing", 0.0, _BELOW_ONE)
    class_weights: Mapping[str, float] | str | None = None
    name = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.class_weights
        if isinstance(weights, Mapping):
            numbers = {
                label: _in_range(weight, f"class_weights[{label!r}]", _POSITIVE)
                for label, weight in weights.items()
            }
            object.__setattr__(self, "class_weights", numbers)
        elif weights is not None and weights != "balanced":
            raise InputError(
                f"class_weights is {weights!r}; give 'balanced' or a weight for each label"
            )

    def add(self, loss: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002
        return functional.cross_entropy(
            batch.logits, batch.labels, batch.class_weights, label_smoothing=self.label_smoothing
        )

    def weights(self, labels: Sequence[str], names: Sequence[str]) -> Tensor | None:
        """Weight of each class, float32 of shape (classes,), or None.

        Args:
            labels: gives the label of each training row.
            names: gives the label names in the order of the logits.

        Raises:
            InputError: the weights and ``names`` do not have the same labels.

        Examples:
            >>> CrossEntropy(class_weights="balanced").weights(["a", "b", "b", "b"], ["a", "b"])
            tensor([2.0000, 0.6667])
        """
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, Mapping):
            self.refuse_other_classes(names)
            return torch.tensor([float(self.class_weights[name]) for name in names])
        counts = Counter(labels)
        return torch.tensor([len(labels) / (len(names) * max(counts[name], 1)) for name in names])

    def refuse_other_classes(self, labels: Sequence[str]) -> None:
        """Check that the class weights name exactly these labels.

        Raises:
            InputError: a label has no weight, or a weight has no label.
        """
        weights = self.class_weights
        if isinstance(weights, Mapping) and set(weights) != set(labels):
            raise InputError(
                f"class_weights names {sorted(weights)}, the labels are {sorted(labels)}; "
                "give one weight per label"
            )


@dataclass(frozen=True)
class Gatekeeper(LossTerm):
    """Gatekeeper, which takes the place of cross-entropy late in the training (arXiv 2502.19335).

    alpha · mean(1[right] · CE(p, y)) + (1 - alpha) · mean(1[wrong] · KL(p || uniform)): rows that
    the stage answers right become sharper, rows that it answers wrong become flatter.

    Attributes:
        alpha: weight of the rows answered right, 0 to 1. A smaller value defers better and
            classifies worse.
        start: share of the training after which it takes over, 0 to 1.

    Raises:
        InputError: a value is out of its range.

    Examples:
        >>> logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> round(Gatekeeper(alpha=1.0).loss(logits, labels).item(), 3)
        0.347
    """

    alpha: float = _setting("gatekeeper_alpha", 0.5, _SHARE)
    start: float = _setting("gatekeeper_start", 0.5, _SHARE)
    name = "gatekeeper"

    def add(self, loss: Tensor, batch: Batch) -> Tensor:
        return loss if batch.done < self.start else self.loss(batch.logits, batch.labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The equation above.

        Args:
            logits: holds the logits, float of shape (rows, classes).
            labels: holds the class indices, int64 of shape (rows,).
        """
        log_p = logits.log_softmax(dim=1)
        right = (logits.argmax(dim=1) == labels).float()
        cross_entropy = functional.nll_loss(log_p, labels, reduction="none")
        classes = torch.tensor(float(logits.shape[1]), device=logits.device)
        to_uniform = (log_p.exp() * log_p).sum(dim=1) + classes.log()
        sharpen, flatten = right * cross_entropy, (1 - right) * to_uniform
        return (self.alpha * sharpen + (1 - self.alpha) * flatten).mean()


@dataclass(frozen=True)
class Distillation(LossTerm):
    """Distillation of the last stage: its logits, and its hidden states if ``hidden_weight`` > 0.

    (1 - weight) · L + weight · T² · KL(teacher || student) + hidden_weight · L_hidden, where L is
    the loss so far. See :func:`~cascadebert.training.distillation.logit_loss` (arXiv 1503.02531)
    and :func:`~cascadebert.training.distillation.hidden_state_loss` (arXiv 1908.09355).

    Attributes:
        weight: share of the last stage's logits, 0 to 1; the labels get the rest.
        temperature: T, which divides the logits of both stages; above 0.
        hidden_weight: weight of the hidden states, 0 or more. Both stages must then have the same
            width.

    Raises:
        InputError: a value is out of its range.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> batch = Batch(logits, torch.tensor([0]), teacher_logits=logits)
        >>> Distillation(weight=1.0).add(torch.tensor(5.0), batch).item()
        0.0
    """

    weight: float = _setting("distillation_weight", 0.5, _SHARE)
    temperature: float = _setting("temperature", 2.0, _POSITIVE)
    hidden_weight: float = _setting("hidden_weight", 0.0, _NOT_NEGATIVE)
    name = "distillation"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("teacher_logits", "teacher_states") if self.hidden_weight else ("teacher_logits",)

    def add(self, loss: Tensor, batch: Batch) -> Tensor:
        assert batch.teacher_logits is not None
        taught = logit_loss(batch.logits, batch.teacher_logits, self.temperature)
        loss = (1 - self.weight) * loss + self.weight * taught
        if not self.hidden_weight:
            return loss
        assert batch.student_states is not None
        assert batch.teacher_states is not None
        hidden = hidden_state_loss(batch.student_states, batch.teacher_states)
        return loss + self.hidden_weight * hidden


@dataclass(frozen=True)
class DAR(LossTerm):
    """Difficulty-aware regularisation (the margin ranking loss of arXiv 2012.14682).

    lambda · mean max(0, epsilon - (c_e - c_h)) over pairs of an easier row e and a harder row h,
    where c is the confidence in the predicted class. Each row with a harder row in its batch is
    paired with one of them, drawn uniformly with replacement. With difficulties 0 and 1 this is
    the sampling of the paper. Rows of equal difficulty are never paired.

    Attributes:
        weight: lambda, 0 or more.
        margin: epsilon, 0 or more, in units of ``score``.
        score: the confidence c: "probability", as in the paper, or "log_odds".

    Raises:
        InputError: a value is out of its range, or the score is unknown.

    Examples:
        >>> logits = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
        >>> round(DAR(margin=0.5).penalty(logits, torch.tensor([0.0, 1.0])).item(), 3)
        0.35
    """

    weight: float = _setting("dar_weight", 0.5, _NOT_NEGATIVE)
    margin: float = _setting("dar_margin", 0.5, _NOT_NEGATIVE)
    score: str = dataclasses.field(default="probability", metadata={"keyword": "dar_score"})
    name = "dar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in SCORES:
            raise InputError(f"dar_score is {self.score!r}; give one of {', '.join(SCORES)}")
        object.__setattr__(self, "score", str(self.score))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("difficulty",)

    def add(self, loss: Tensor, batch: Batch) -> Tensor:
        assert batch.difficulty is not None
        return loss + self.weight * self.penalty(batch.logits, batch.difficulty, batch.generator)

    def penalty(
        self, logits: Tensor, difficulty: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean of the equation above, without lambda.

        Args:
            logits: holds the logits, float of shape (rows, classes).
            difficulty: holds the difficulties, float of shape (rows,); larger is harder.
            generator: draws the pairs, on the CPU.

        Returns:
            A scalar; 0 without a gradient if the batch has no pair.
        """
        easier, harder = draw_pairs(difficulty, generator)
        if not len(easier):
            return logits.new_zeros(())
        sure = confidence(logits, self.score)
        return functional.margin_ranking_loss(
            sure[easier], sure[harder], torch.ones_like(sure[easier]), margin=self.margin
        )


def draw_pairs(
    difficulty: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a harder row for each row that has one.

    Args:
        difficulty: holds the difficulties, float of shape (rows,).
        generator: draws the rows, on the CPU.

    Returns:
        Positions of the easier rows and of their harder partners: two int64 tensors of one
        length, on the device of ``difficulty``.

    Examples:
        >>> draw_pairs(torch.tensor([0.0, 1.0, 0.5]), torch.Generator().manual_seed(0))[0]
        tensor([0, 2])
    """
    level = difficulty.detach().cpu()
    is_harder = level[None, :] > level[:, None]
    easier = is_harder.any(dim=1).nonzero()[:, 0]
    if not len(easier):
        return easier, easier
    chances = is_harder[easier].float()
    harder = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return easier.to(difficulty.device), harder.to(difficulty.device)


def confidence(logits: Tensor, score: str = "probability") -> Tensor:
    """Confidence in the predicted class.

    Args:
        logits: holds the logits, float of shape (rows, classes).
        score: names the unit: "probability" or "log_odds".

    Returns:
        float of shape (rows,).

    Examples:
        >>> confidence(torch.tensor([[0.0, 2.0]]), "log_odds")
        tensor([2.])
    """
    if score == "probability":
        return logits.softmax(dim=1).amax(dim=1)
    top, best = logits.max(dim=1)
    others = logits.scatter(1, best[:, None], float("-inf"))
    return top - others.logsumexp(dim=1)


def python_value(value: Any) -> Any:
    """The Python number, or other value, of a NumPy scalar; anything else is returned as it is.

    Examples:
        >>> import numpy as np
        >>> python_value(np.int64(3)), python_value("x")
        (3, 'x')
    """
    return value.item() if getattr(value, "shape", None) == () else value


def _in_range(value: Any, keyword: str, allowed: _Range) -> float:
    test, wanted = allowed
    number = python_value(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not test(number):
        raise InputError(f"{keyword} is {number!r}; give {wanted}")
    return number
