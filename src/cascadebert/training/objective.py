"""The loss of one stage: loss terms, combined by name or as objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cascadebert.errors import InputError
from cascadebert.training.losses import (
    DAR,
    Batch,
    CrossEntropy,
    Distillation,
    Gatekeeper,
    LossTerm,
)

DEFAULT_LOSS = "distillation"
"""The loss of small stages with the best average in docs/results.md."""

_REMEDIES = {
    "difficulty": "the difficulty of each row; compute it with cross_fit",
    "teacher_logits": "the last stage's outputs; compute them with outputs_of",
    "teacher_states": "the last stage's hidden states; give outputs_of state_layers, or set "
    "hidden_weight to 0",
}
_KINDS: tuple[type[LossTerm], ...] = (CrossEntropy, Gatekeeper, Distillation, DAR)
TERMS = tuple(kind.name for kind in _KINDS)
"""Names of the terms, in the order in which they are added."""


@dataclass(frozen=True, init=False)
class Objective:
    """The loss of one stage: cross-entropy with the labels and any other terms.

    Args:
        name: names the terms of :data:`TERMS`, joined by "+"; or gives the first term itself.
        terms: gives further terms, if the first one is a term too.
        settings: sets fields of the named terms: ``label_smoothing``, ``class_weights``;
            ``gatekeeper_alpha``, ``gatekeeper_start``; ``distillation_weight``, ``temperature``,
            ``hidden_weight``; ``dar_weight``, ``dar_margin``, ``dar_score``. Settings of terms
            that are not named are validated but have no effect.

    Attributes:
        name: names of the terms, sorted and joined by "+".
        terms: the terms in the order of :data:`TERMS`; the first is always
            :class:`CrossEntropy`.

    Raises:
        InputError: a term is unknown or given twice, or a value is out of its range.
        TypeError: a setting is unknown, or settings are given with terms.

    Examples:
        >>> Objective("distillation+dar", dar_weight=0.3).name
        'dar+distillation'
        >>> Objective("dar", dar_weight=0.3) == Objective(DAR(weight=0.3))
        True
        >>> Objective("gatekeeper", gatekeeper_alpha=0.2).settings()["gatekeeper_alpha"]
        0.2
    """

    name: str
    terms: tuple[LossTerm, ...]

    def __init__(
        self, name: str | LossTerm = CrossEntropy.name, *terms: LossTerm, **settings: Any
    ) -> None:
        if isinstance(name, str) and not terms:
            names, terms = set(name.split("+")), _named_terms(name, settings)
        elif isinstance(name, LossTerm) and not settings:
            terms = (name, *terms)
            names = {term.name for term in terms}
            if len(names) < len(terms):
                raise InputError(f"a loss has the terms {terms}; give each kind once")
            names = names - {CrossEntropy.name} or names
        else:
            raise TypeError("an Objective takes a name with settings, or terms without settings")
        by_name = {CrossEntropy.name: CrossEntropy()} | {term.name: term for term in terms}
        object.__setattr__(self, "name", "+".join(sorted(names)))
        object.__setattr__(self, "terms", tuple(by_name[n] for n in TERMS if n in by_name))

    @property
    def cross_entropy(self) -> CrossEntropy:
        """The term of the labels."""
        (first, *_) = self.terms
        assert isinstance(first, CrossEntropy)
        return first

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of :class:`Batch` that the terms cannot do without."""
        return tuple(field for term in self.terms for field in term.needs)

    @property
    def needs_difficulty(self) -> bool:
        """Whether a term reads the difficulty of the rows."""
        return "difficulty" in self.needs

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads the last stage's logits."""
        return "teacher_logits" in self.needs

    @property
    def needs_states(self) -> bool:
        """Whether a term reads the last stage's hidden states."""
        return "teacher_states" in self.needs

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch.

        Args:
            batch: holds the rows, with all that :attr:`needs` names.

        Returns:
            A float32 scalar.

        Raises:
            InputError: the batch lacks a field.

        Examples:
            >>> import torch
            >>> batch = Batch(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
            >>> round(Objective().loss(batch).item(), 3)
            0.693
        """
        self.refuse_missing({name: getattr(batch, name) for name in self.needs})
        batch = dataclasses.replace(batch, logits=batch.logits.float())
        total = batch.logits.new_zeros(())
        for term in self.terms:
            total = term.add(total, batch)
        return total

    def refuse_missing(self, values: Mapping[str, Any]) -> None:
        """Check that nothing is missing that the terms need.

        Args:
            values: maps fields of :class:`Batch` to their values, None for missing ones.

        Raises:
            InputError: a value is None or not there.

        Examples:
            >>> Objective("dar").refuse_missing({"difficulty": [0.0, 1.0]})
        """
        for term in self.terms:
            for name in term.needs:
                if values.get(name) is None:
                    raise InputError(f"the loss '{term.name}' needs {_REMEDIES[name]}")

    def refuse_other_classes(self, labels: Sequence[str]) -> None:
        """Check that the class weights, if given by label, name exactly these labels.

        Raises:
            InputError: a label has no weight, or a weight has no label.
        """
        self.cross_entropy.refuse_other_classes(labels)

    def plain(self) -> Objective:
        """The label term alone: the objective of stages that take no part in deferral."""
        return Objective(self.cross_entropy)

    def settings(self) -> dict[str, Any]:
        """The values that take effect, as keywords of :class:`Objective`, ready for JSON.

        Equal settings are the same training. ``Objective(**settings)`` is the objective again.

        Examples:
            >>> Objective("dar").settings()["dar_margin"]
            0.5
        """
        values: dict[str, Any] = {"name": self.name}
        for term in (self.cross_entropy, *sorted(self.terms[1:], key=lambda term: term.name)):
            values |= term.settings()
        return values


def _named_terms(name: str, settings: dict[str, Any]) -> tuple[LossTerm, ...]:
    """The label term and the named ones; settings of the other terms are validated too."""
    names = {CrossEntropy.name, *name.split("+")}
    if unknown := sorted(names - set(TERMS)):
        raise InputError(
            f"unknown loss {'+'.join(unknown)!r}; join any of {', '.join(TERMS)} with '+'"
        )
    if settings.get("hidden_weight") and Distillation.name not in names:
        raise InputError(
            f"hidden_weight is {settings['hidden_weight']} and the loss is {name!r}; hidden states "
            "are part of the loss 'distillation'"
        )
    terms = []
    for kind in _KINDS:
        keywords = kind.keywords().items()
        terms.append(kind(**{f: settings.pop(key) for f, key in keywords if key in settings}))
    if settings:
        raise TypeError(f"an Objective has no setting {', '.join(sorted(settings))}")
    return tuple(term for term in terms if term.name in names)
