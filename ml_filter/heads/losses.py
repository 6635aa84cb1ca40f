"""What a head's logits cost against labels, missing labels masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from ml_filter.heads.model import Head


def head_loss(
    head: Head, logits: list[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean loss over the labels that are there.

    Squared error for a regression. For classes the label is a soft target on the two whole scores around it, so that
    the mean of several votes keeps its meaning; cross-entropy for classification, binary cross-entropies at every cut
    for ordinal (the cumulative link's likelihood with independent cuts).

    Args:
        head: whose logits they are.
        logits: of each criterion, [batch, ...].
        labels: [batch, criteria]; nan where there is none.
        weights: [batch, criteria], or None: all alike.
    """
    total = labels.new_zeros(())
    share = labels.new_zeros(())
    for place, (criterion, of) in enumerate(zip(head.criteria, logits, strict=True)):
        known = ~labels[:, place].isnan()
        wanted, made = labels[known, place].clamp(criterion.low, criterion.high), of[known]
        if head.task == "regression":
            losses = (made.squeeze(1) - wanted) ** 2
        elif head.task == "ordinal":
            reached = (wanted[:, None] - torch.tensor(criterion.values[:-1], device=wanted.device)).clamp(0, 1)
            losses = functional.binary_cross_entropy_with_logits(made, reached, reduction="none").sum(1)
        else:
            values = torch.tensor(criterion.values, device=wanted.device)
            target = (1 - (wanted[:, None] - values).abs()).clamp(min=0)
            losses = functional.cross_entropy(made, target, reduction="none")
        weight = torch.ones_like(losses) if weights is None else weights[known, place]
        total = total + (losses * weight).sum()
        share = share + weight.sum()
    return total / share.clamp(min=1e-12)
