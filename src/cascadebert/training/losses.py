"""What a stage is trained to minimise: chosen by name, computed a batch at a time.

An objective is one or more of :data:`TERMS` joined by "+": ``"cross_entropy"``, ``"dar"``,
``"distillation+dar"``, ``"gatekeeper"``. Cross-entropy with the labels is part of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from cascadebert.errors import InputError
from cascadebert.training.distillation import hidden_state_loss, logit_loss

TERMS = ("cross_entropy", "dar", "distillation", "gatekeeper")
DEFAULT_LOSS = "distillation"
"""Of small stages in a cascade: the best on average in docs/results.md."""
SCORES = ("probability", "log_odds")


@dataclass(frozen=True)
class Objective:
    """The loss of one stage and its weights.

    Attributes:
        name: terms of :data:`TERMS`, joined by "+".
        dar_weight: lambda, the weight of difficulty-aware regularisation beside the rest.
        dar_margin: epsilon, how much surer an easier row must be; in units of ``dar_score``.
        dar_score: what the margin is on: "probability", the paper's, or "log_odds".
        distillation_weight: share of the distillation loss; the labels have the rest.
        temperature: divides the logits of both stages in distillation.
        hidden_weight: weight of matching the last stage's hidden states, which needs stages of
            equal width; 0 is none.
        gatekeeper_alpha: weight of rows answered right; the rest is on rows answered wrong.
        gatekeeper_start: share of the training after which Gatekeeper takes the place of plain
            cross-entropy.
        class_weights: weight of each class by name, or "balanced" for weights in inverse
            proportion to the number of rows.
        label_smoothing: share of the label mass spread over all classes.

    Raises:
        InputError: an unknown term, or a value out of its range.
    """

    name: str = "cross_entropy"
    dar_weight: float = 0.5
    dar_margin: float = 0.5
    dar_score: str = "probability"
    distillation_weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    gatekeeper_alpha: float = 0.5
    gatekeeper_start: float = 0.5
    class_weights: Mapping[str, float] | str | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(self.terms - set(TERMS))
        if unknown:
            raise InputError(
                f"no loss is called {'+'.join(unknown)!r}; join any of {', '.join(TERMS)} with '+'"
            )
        if self.dar_score not in SCORES:
            raise InputError(f"dar_score is {self.dar_score!r}; give one of {', '.join(SCORES)}")
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise InputError(
                f"class_weights is {self.class_weights!r}; give 'balanced' or a weight a class"
            )
        if isinstance(self.class_weights, Mapping):
            bad = {n: w for n, w in self.class_weights.items() if not 0 < w < float("inf")}
            if bad:
                raise InputError(f"class_weights has {bad}; give numbers above 0")
        if self.hidden_weight and not self.needs_teacher:
            raise InputError(
                f"hidden_weight is {self.hidden_weight} and the loss is {self.name!r}; it is part "
                "of 'distillation'"
            )
        for name in ("distillation_weight", "gatekeeper_alpha", "gatekeeper_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        for name in ("dar_weight", "dar_margin", "hidden_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 up")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; give a number above 0")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}; give 0 or more, under 1")

    @property
    def terms(self) -> frozenset[str]:
        return frozenset(self.name.split("+"))

    @property
    def needs_difficulty(self) -> bool:
        return "dar" in self.terms

    @property
    def needs_teacher(self) -> bool:
        return "distillation" in self.terms

    def refuse_other_classes(self, labels: Sequence[str]) -> None:
        """Refuse class weights that do not name every label, and no other.

        Raises:
            InputError: with the names and the labels.
        """
        weights = self.class_weights
        if isinstance(weights, Mapping) and set(weights) != set(labels):
            raise InputError(
                f"class_weights names {sorted(weights)}, the labels are {sorted(labels)}; "
                "give a weight for each"
            )

    def plain(self) -> Objective:
        """The objective of stages that take no part in deferral: the labels alone."""
        return dataclasses.replace(self, name="cross_entropy", hidden_weight=0.0)

    def settings(self) -> dict[str, object]:
        """What of this takes effect under ``name``; the identity of a training."""
        values = {"name": "+".join(sorted(self.terms)), "label_smoothing": self.label_smoothing}
        weights = self.class_weights
        values["class_weights"] = dict(weights) if isinstance(weights, Mapping) else weights
        fields = {
            "dar": ("dar_weight", "dar_margin", "dar_score"),
            "distillation": ("distillation_weight", "temperature", "hidden_weight"),
            "gatekeeper": ("gatekeeper_alpha", "gatekeeper_start"),
        }
        for term in sorted(self.terms & set(fields)):
            values |= {name: getattr(self, name) for name in fields[term]}
        return values


def stage_loss(
    objective: Objective,
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    difficulty: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    student_states: Tensor | None = None,
    teacher_states: Tensor | None = None,
    done: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The objective's mean over a batch.

    Args:
        objective: what to compute.
        logits: of the stage in training, (rows, classes).
        labels: class indices, int64 (rows,).
        class_weights: (classes,), for the label term.
        difficulty: (rows,), larger is harder; needed for "dar".
        teacher_logits: of the last stage, (rows, classes); needed for "distillation".
        student_states: hidden states of the stage in training, (rows, layers, width).
        teacher_states: the matching ones of the last stage, same shape.
        done: share of the training that lies behind, 0 to 1.
        generator: draws the pairs of "dar", on the CPU.
    """
    logits = logits.float()
    if "gatekeeper" in objective.terms and done >= objective.gatekeeper_start:
        total = gatekeeper_loss(logits, labels, objective.gatekeeper_alpha)
    else:
        total = functional.cross_entropy(
            logits, labels, class_weights, label_smoothing=objective.label_smoothing
        )
    if teacher_logits is not None and objective.needs_teacher:
        share = objective.distillation_weight
        taught = logit_loss(logits, teacher_logits, objective.temperature)
        total = (1 - share) * total + share * taught
        if student_states is not None and teacher_states is not None:
            total = total + objective.hidden_weight * hidden_state_loss(
                student_states, teacher_states
            )
    if difficulty is not None and objective.needs_difficulty:
        regularisation = dar_loss(
            logits, difficulty, objective.dar_margin, objective.dar_score, generator
        )
        total = total + objective.dar_weight * regularisation
    return total


def dar_loss(
    logits: Tensor,
    difficulty: Tensor,
    margin: float = 0.5,
    score: str = "probability",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Difficulty-aware regularisation of arXiv 2012.14682 (its margin ranking loss).

    The mean over pairs of an easier row e and a harder row h of max(0, epsilon - (c_e - c_h)),
    c being the confidence in the predicted class. Each row for which the batch has a harder one
    is paired with one such row, drawn with replacement. With difficulties 0 and 1 that is the
    paper's sampling; rows of equal difficulty are never a pair.

    Args:
        logits: (rows, classes).
        difficulty: (rows,), larger is harder.
        margin: epsilon, in units of ``score``.
        score: "probability" or "log_odds".
        generator: for the draw, on the CPU.

    Returns:
        A scalar; 0, with no gradient, where the batch has no pair.
    """
    easier, harder = draw_pairs(difficulty, generator)
    if not len(easier):
        return logits.new_zeros(())
    sure = confidence(logits, score)
    return functional.margin_ranking_loss(
        sure[easier], sure[harder], torch.ones_like(sure[easier]), margin=margin
    )


def draw_pairs(
    difficulty: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of easier rows and, for each, of one harder row drawn uniformly.

    Args:
        difficulty: (rows,).
        generator: for the draw, on the CPU.

    Returns:
        Two int64 tensors of one length, on the device of ``difficulty``.
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
    """Confidence in the predicted class, (rows,): its probability or the log-odds of it."""
    if score == "probability":
        return logits.softmax(dim=1).amax(dim=1)
    top, best = logits.max(dim=1)
    others = logits.scatter(1, best[:, None], float("-inf"))
    return top - others.logsumexp(dim=1)


def gatekeeper_loss(logits: Tensor, labels: Tensor, alpha: float = 0.5) -> Tensor:
    """The Gatekeeper loss of arXiv 2502.19335.

    alpha · mean(1[right] · CE(p, y)) + (1 - alpha) · mean(1[wrong] · KL(p || uniform)): rows
    that the stage answers right sharpen, rows that it answers wrong flatten.

    Args:
        logits: (rows, classes).
        labels: class indices (rows,).
        alpha: trade-off, 0 to 1; smaller defers better and answers worse.
    """
    log_p = logits.log_softmax(dim=1)
    right = (logits.argmax(dim=1) == labels).float()
    cross_entropy = functional.nll_loss(log_p, labels, reduction="none")
    classes = torch.tensor(float(logits.shape[1]), device=logits.device)
    to_uniform = (log_p.exp() * log_p).sum(dim=1) + classes.log()
    return (alpha * right * cross_entropy + (1 - alpha) * (1 - right) * to_uniform).mean()
