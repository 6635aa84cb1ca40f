"""The loss of a head's logits against labels; missing labels are masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from ml_filter.heads.model import OutputLayer


def head_loss(
    head: OutputLayer, logits: list[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean loss over the labels that are not missing.

    Regression: squared error. Otherwise the label is a soft target on the two whole scores around it, so that a mean
    of several votes keeps its meaning: cross-entropy for classification; for ordinal the sum of binary cross-entropies
    at all cuts (the likelihood of the cumulative link model if the cuts were independent).

    Args:
        head: the head that returned the logits.
        logits: for each criterion, [batch, ...].
        labels: [batch, criteria]; nan is missing.
        weights: [batch, criteria]; None weights all labels equally.
    """
    total = labels.new_zeros(())
    total_weight = labels.new_zeros(())
    for index, (criterion, criterion_logits) in enumerate(zip(head.criteria, logits, strict=True)):
        is_labelled = ~labels[:, index].isnan()
        target = labels[is_labelled, index].clamp(criterion.low, criterion.high)
        output = criterion_logits[is_labelled]
        if head.task == "regression":
            losses = (output.squeeze(1) - target) ** 2
        elif head.task == "ordinal":
            reached = (target[:, None] - torch.tensor(criterion.values[:-1], device=target.device)).clamp(0, 1)
            losses = functional.binary_cross_entropy_with_logits(output, reached, reduction="none").sum(1)
        else:
            values = torch.tensor(criterion.values, device=target.device)
            soft_target = (1 - (target[:, None] - values).abs()).clamp(min=0)
            losses = functional.cross_entropy(output, soft_target, reduction="none")
        weight = torch.ones_like(losses) if weights is None else weights[is_labelled, index]
        total = total + (losses * weight).sum()
        total_weight = total_weight + weight.sum()
    return total / total_weight.clamp(min=1e-12)
