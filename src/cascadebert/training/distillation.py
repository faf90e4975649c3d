"""Teaching a small stage what the last one says: its logits, and hidden states if asked."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cascadebert.errors import InputError


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation of Hinton et al. (arXiv 1503.02531).

    T² · KL(softmax(teacher / T) || softmax(student / T)), the mean over the rows; T² keeps the
    size of the gradient when T changes.

    Args:
        student: logits (rows, classes).
        teacher: logits (rows, classes), no gradient goes to them.
        temperature: T, above 0.
    """
    divergence = functional.kl_div(
        (student.float() / temperature).log_softmax(dim=1),
        (teacher.detach().float() / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def hidden_state_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Patient knowledge distillation (arXiv 1908.09355): matching first-token states.

    The mean squared distance of the states, each scaled to length 1, over rows and layers.

    Args:
        student: (rows, layers, width), of the layers that :func:`matched_layers` names.
        teacher: the same shape.
    """
    apart = functional.normalize(student.float(), dim=-1) - functional.normalize(
        teacher.detach().float(), dim=-1
    )
    return apart.square().sum(dim=-1).mean()


def matched_layers(student: int, teacher: int) -> tuple[list[int], list[int]]:
    """Layers that are compared: every layer of the student with one of the teacher, evenly apart.

    Args:
        student: its number of layers.
        teacher: its number of layers.

    Returns:
        Two lists of layer numbers, counted from 1; 0 would be the embeddings.
    """
    own = list(range(1, student + 1))
    return own, [round(layer * teacher / student) for layer in own]


def first_token_states(hidden_states: tuple[Tensor, ...], layers: list[int]) -> Tensor:
    """States of the first token, (rows, layers, width).

    Args:
        hidden_states: of every layer, embeddings first, each (rows, tokens, width).
        layers: numbers of the layers wanted.
    """
    return torch.stack([hidden_states[layer][:, 0] for layer in layers], dim=1)


def refuse_other_width(student: int, teacher: int, stage: str) -> None:
    """Refuse to match hidden states of other widths.

    Raises:
        InputError: the widths differ.
    """
    if student != teacher:
        raise InputError(
            f"stage '{stage}' has hidden states {student} wide and the last stage {teacher}: they "
            "cannot be matched; set hidden_weight to 0"
        )
