"""Distillation of the last stage: losses on its logits and on its hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cascadebert.errors import InputError


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation of Hinton et al. (arXiv 1503.02531).

    T² · KL(softmax(teacher / T) || softmax(student / T)), averaged over the rows. The factor T²
    keeps the gradients of one size for all T.

    Args:
        student: holds the student's logits, float of shape (rows, classes).
        teacher: holds the teacher's logits, same shape; they get no gradient.
        temperature: sets T, above 0.

    Returns:
        A float32 scalar.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> logit_loss(logits, logits, temperature=2.0).item()
        0.0
    """
    divergence = functional.kl_div(
        (student.float() / temperature).log_softmax(dim=1),
        (teacher.detach().float() / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def hidden_state_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Patient knowledge distillation of first-token states: L_PT of arXiv 1908.09355.

    The squared distance between the states, each scaled to length 1, averaged over rows and
    layers.

    Args:
        student: holds the student's states, float of shape (rows, layers, width), for the layers
            of :func:`matched_layers`.
        teacher: holds the teacher's states, same shape; they get no gradient.

    Returns:
        A float32 scalar, 0 to 4.

    Examples:
        >>> states = torch.ones(1, 1, 4)
        >>> hidden_state_loss(states, -states).item()
        4.0
    """
    apart = functional.normalize(student.float(), dim=-1) - functional.normalize(
        teacher.detach().float(), dim=-1
    )
    return apart.square().sum(dim=-1).mean()


def matched_layers(student: int, teacher: int) -> tuple[list[int], list[int]]:
    """Match every layer of the student with one of the teacher, evenly spaced.

    Args:
        student: counts the student's layers.
        teacher: counts the teacher's layers.

    Returns:
        Two lists of layer numbers from 1; 0 would be the embeddings.

    Examples:
        >>> matched_layers(3, 12)
        ([1, 2, 3], [4, 8, 12])
    """
    own = list(range(1, student + 1))
    return own, [round(layer * teacher / student) for layer in own]


def first_token_states(hidden_states: tuple[Tensor, ...], layers: list[int]) -> Tensor:
    """States of the first token in some layers.

    Args:
        hidden_states: holds the states of every layer, embeddings first, each a float tensor of
            shape (rows, tokens, width).
        layers: numbers the layers, from 1.

    Returns:
        float of shape (rows, layers, width).

    Examples:
        >>> first_token_states((torch.zeros(2, 5, 8), torch.ones(2, 5, 8)), [1]).shape
        torch.Size([2, 1, 8])
    """
    return torch.stack([hidden_states[layer][:, 0] for layer in layers], dim=1)


def refuse_other_width(student: int, teacher: int, stage: str) -> None:
    """Check that hidden states can be matched.

    Args:
        student: gives the width of the student's states.
        teacher: gives the width of the teacher's states.
        stage: names the student in the error.

    Raises:
        InputError: the widths differ.

    Examples:
        >>> refuse_other_width(384, 384, "small")
    """
    if student != teacher:
        raise InputError(
            f"hidden states of stage '{stage}' are {student} wide, those of the last stage "
            f"{teacher}; set hidden_weight to 0"
        )
