"""Fit a head on cached embeddings, and predict with it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import get_scheduler

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadSettings
from ml_filter.heads.embeddings import Embeddings
from ml_filter.heads.losses import head_loss
from ml_filter.heads.model import KernelLayer, MlpLayer, OutputLayer
from ml_filter.heads.ridge import fit_ridge, label_weights, mean_and_scale
from ml_filter.statistics.rounding import integer_scores, whole_scores
from ml_filter.statistics.weighted import rank_and_distance, table_statistic

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KERNEL_ALPHAS = tuple(float(a) for a in np.logspace(-2, 1.5, 15))
_JITTERS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Added to the diagonal of a kernel of 1, the smallest by which it can be solved."""
_BATCH = 64
_VALIDATION_SHARE = 0.1
_FIGURES = ("spearman", "pearson", "mae", "macro_f1")


def fit_head(
    embeddings: Embeddings,
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    criteria: Sequence[Criterion],
    settings: HeadSettings,
    *,
    seed: int,
    owners: NDArray[np.int64] | None = None,
) -> OutputLayer:
    """Fit a head on embeddings [n, width]; the same input gives the same weights.

    Linear and kernel regressions are solved in closed form (ridge, its penalty by leave-one-out error), all else is
    trained with AdamW and stopped early on a tenth of the documents; then the head's `history` has a row for each
    epoch: `step`, `epoch`, `loss`, `grad_norm` (means over its steps), `learning_rate` at its end, and on that tenth
    `eval_loss` and the `validation_figures`, as `eval_<figure>`, that are defined.

    Args:
        embeddings: of the documents.
        labels: [n, criteria], nan where there is none.
        weights: [n, criteria], how much each label counts, besides the class weights of `settings.balance`.
        criteria: their names and score ranges.
        settings: kind of head, task, size, length, balance.
        seed: draws landmarks, batches and the documents for early stopping.
        owners: [n], the document of each embedding, as 0, 1, ...; None: each is one of its own.

    Raises:
        InputError: training diverges, no epoch gave the metric of early stopping, or the embeddings are nearly all the
            same.
    """
    owners = np.arange(len(embeddings)) if owners is None else owners
    weights = class_weights(labels, weights, settings.balance)
    size = min(settings.size, len(embeddings)) if settings.kind == "kernel" else settings.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = OutputLayer(settings.kind, settings.task, embeddings.shape[1], size, list(criteria))
        if isinstance(head.layer, KernelLayer | MlpLayer):
            mean, scale = mean_and_scale(embeddings)
            head.layer.mean.copy_(torch.from_numpy(mean))
            head.layer.scale.copy_(torch.from_numpy(scale))
        if isinstance(head.layer, KernelLayer):
            # Root mean square distance of two documents with independent features, the unit of the kernel's length.
            head.layer.scale *= 2**0.5 * settings.length
            drawn = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:size])
            head.layer.landmarks.copy_((torch.from_numpy(embeddings[drawn]) - head.layer.mean) / head.layer.scale)
        if settings.task == "regression" and settings.kind in ("linear", "kernel"):
            _solve(head, embeddings, labels, weights, seed)
        else:
            _descend(head, embeddings, labels, weights, settings, seed, owners)
    return head.eval().requires_grad_(False)


def predict(head: OutputLayer, embeddings: Embeddings) -> NDArray[np.float64]:
    """Scores [n, criteria] of a head for embeddings [n, width], as it gives them: not clamped."""
    made = np.empty((len(embeddings), len(head.criteria)))
    with torch.inference_mode():
        for part in embeddings.blocks():
            made[part] = head.scores(head(torch.from_numpy(embeddings[part]))).numpy()
    return made


def class_weights(labels: NDArray[np.float64], weights: NDArray[np.float64], balance: float) -> NDArray[np.float64]:
    """Weights [n, criteria] times those of the labels' classes; of mean 1 over the labels, 0 where there is none."""
    made = np.zeros_like(weights)
    for place in range(labels.shape[1]):
        known = ~np.isnan(labels[:, place])
        if known.any():
            made[known, place] = weights[known, place] * label_weights(labels[known, place], balance)
            made[known, place] /= made[known, place].mean()
    return made


def _solve(
    head: OutputLayer, embeddings: Embeddings, labels: NDArray[np.float64], weights: NDArray[np.float64], seed: int
) -> None:
    """Closed-form weights of a linear or kernel regression, criterion by criterion."""
    for place in range(len(head.criteria)):
        known = np.flatnonzero(~np.isnan(labels[:, place]))
        rows, wanted, weight = embeddings.take(known), labels[known, place], weights[known, place]
        if isinstance(head.layer, KernelLayer):
            with tempfile.TemporaryDirectory(prefix="ml_filter-kernel-") as scratch:
                coefficients, bias = _solve_kernel(head.layer, rows, wanted, weight, seed, Path(scratch))
        else:
            coefficients, bias, _ = fit_ridge(rows, wanted, weight, seed=seed)
        with torch.no_grad():
            head.out.weight[place] = torch.from_numpy(coefficients)
            head.out.bias[place] = bias


def _solve_kernel(
    layer: KernelLayer,
    rows: Embeddings,
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    seed: int,
    scratch: Path,
) -> tuple[NDArray[np.float64], float]:
    """Kernel ridge regression on landmarks (Nystroem; Williams and Seeger 2001): exact where all rows are landmarks.

    Ridge on features whose inner products are the kernel: K(x, landmarks) times the inverse root of the landmarks'
    own kernel. The features lie on disk.
    """
    from scipy.linalg import solve_triangular

    with torch.inference_mode():
        own = layer(layer.landmarks * layer.scale + layer.mean).double().numpy()
        root = _root(own)
        shape = (len(rows), len(own))
        features = np.memmap(scratch / "features", np.float32, "w+", shape=shape)
        for part in rows.blocks():
            near = layer(torch.from_numpy(rows[part])).double().numpy()
            features[part] = solve_triangular(root, near.T, lower=True).T
    # A column or two are too few to select a penalty on; the kernel's own scale is 1.
    coefficients, bias, _ = fit_ridge(features, labels, weights, seed=seed, standardise=False, alphas=_KERNEL_ALPHAS)
    return solve_triangular(root, coefficients, lower=True, trans="T"), bias


def _root(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower triangular root of a kernel matrix, which rounding may have made slightly indefinite."""
    from scipy.linalg import LinAlgError, cholesky

    for jitter in _JITTERS:
        try:
            root: NDArray[np.float64] = cholesky(kernel + jitter * np.eye(len(kernel)), lower=True)
        except LinAlgError:
            continue
        return root
    raise InputError(
        f"the embeddings of {len(kernel):,} documents are too much alike for a kernel; set head.kind to linear, or "
        "give documents that differ"
    )


def _descend(
    head: OutputLayer,
    embeddings: Embeddings,
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    settings: HeadSettings,
    seed: int,
    owners: NDArray[np.int64],
) -> None:
    """Train with AdamW on batches of cached embeddings; keep the weights that did best on a tenth of the documents."""
    random = np.random.default_rng(seed)
    documents = int(owners.max()) + 1
    held = max(1, round(documents * _VALIDATION_SHARE))
    rank = np.argsort(random.permutation(documents))[owners]  # of an embedding's document, in a random order
    validation, training = np.split(np.argsort(rank, kind="stable"), [int((rank < held).sum())])
    validation = np.sort(validation)
    mean, scale = (torch.from_numpy(of).float() for of in mean_and_scale(embeddings))
    if isinstance(head.layer, MlpLayer):
        mean, scale = torch.zeros_like(mean), torch.ones_like(scale)  # it standardises itself
    with torch.no_grad():  # start at the mean label
        for place, parts in enumerate(head.out.bias.split(head.sizes)):
            parts.fill_(float(np.nanmean(labels[:, place])) if settings.task == "regression" else 0.0)
    targets = (torch.from_numpy(labels).float(), torch.from_numpy(weights).float())

    def forward(places: NDArray[np.int64]) -> tuple[list[torch.Tensor], torch.Tensor]:
        made = head((torch.from_numpy(embeddings[places]) - mean) / scale)
        return made, head_loss(head, made, targets[0][places], targets[1][places])

    def judged() -> dict[str, float]:
        made, loss = forward(validation)
        figures = validation_figures(head.scores(made).numpy(), labels[validation], head.criteria)
        return {"loss": float(loss), **figures}

    _descend_by(head, training, forward, judged, settings, random)
    if isinstance(head.layer, nn.Identity):  # the head itself sees embeddings that are not standardised
        with torch.no_grad():
            head.out.weight.div_(scale)
            head.out.bias.sub_(head.out.weight @ mean)


def _descend_by(
    head: OutputLayer,
    training: NDArray[np.int64],
    forward: Callable[[NDArray[np.int64]], tuple[list[torch.Tensor], torch.Tensor]],
    judged: Callable[[], dict[str, float]],
    settings: HeadSettings,
    random: np.random.Generator,
) -> None:
    """The epochs: warm-up, decay, early stopping, history."""
    optimizer = torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(training) / _BATCH)
    rates = get_scheduler(settings.schedule, optimizer, math.ceil(settings.warmup_share * steps), steps)
    best, best_state, waited = -math.inf, None, 0
    for epoch in range(1, settings.epochs + 1):
        head.train()
        random.shuffle(training)
        losses, norms = [], []
        for start in range(0, len(training), _BATCH):
            optimizer.zero_grad()
            _, loss = forward(training[start : start + _BATCH])
            loss.backward()
            norms.append(float(nn.utils.get_total_norm([of.grad for of in head.parameters() if of.grad is not None])))
            optimizer.step()
            rates.step()
            losses.append(loss.item())
        head.eval()
        with torch.inference_mode():
            figures = judged()
        row = {"step": rates.last_epoch, "epoch": epoch, "loss": np.mean(losses), "grad_norm": np.mean(norms)}
        row |= {"learning_rate": rates.get_last_lr()[0]} | {f"eval_{name}": of for name, of in figures.items()}
        head.history.append({name: float(of) for name, of in row.items() if np.isfinite(of)})
        now = -figures["loss"] if settings.metric == "loss" else figures[settings.metric]
        if now > best:
            best, waited = now, 0
            best_state = {name: value.detach().clone() for name, value in head.state_dict().items()}
        elif (waited := waited + 1) > settings.patience:
            break
    if best_state is None and settings.metric == "loss":
        raise InputError(
            f"training of the head diverged: its validation loss is never a number; lower head.learning_rate "
            f"({settings.learning_rate:g})"
        )
    if best_state is None:
        raise InputError(
            f"no epoch gave a {settings.metric} on the documents kept apart: their labels or scores do not vary, or "
            "the loss is not finite; give more documents, a lower head.learning_rate, or head.metric: loss"
        )
    head.load_state_dict(best_state)


def validation_figures(
    scores: NDArray[np.floating], labels: NDArray[np.floating], criteria: Sequence[Criterion]
) -> dict[str, float]:
    """Spearman, Pearson, MAE and macro-F1 of scores [n, criteria] against labels, nan where there is none.

    Means over the criteria; of several also each one's, by `<figure>_<criterion>`; nan where a figure is undefined.
    """
    figures: dict[str, float] = {}
    found: dict[str, list[float]] = {name: [] for name in _FIGURES}
    for place, criterion in enumerate(criteria):
        rows = np.column_stack([labels[:, place], scores[:, place]]).astype(np.float64)
        for name, value in _figures_of(rows[np.isfinite(rows).all(axis=1)], criterion):
            found[name].append(value)
            if len(criteria) > 1:
                figures[f"{name}_{criterion.name}"] = value
    return figures | {name: float(np.mean(of)) if of else float("nan") for name, of in found.items()}


def _figures_of(rows: NDArray[np.float64], criterion: Criterion) -> Iterator[tuple[str, float]]:
    """The figures of documents (label, score) that are defined. Every epoch asks: so none of what else can be told."""
    if not len(rows):
        return
    span = np.array(whole_scores(criterion.low, criterion.high), np.float64)
    whole = integer_scores(rows, criterion.low, criterion.high).astype(np.float64)
    for statistic, of in ((rank_and_distance, rows), (table_statistic(span), whole)):
        distinct, counts = np.unique(of, axis=0, return_counts=True)
        made = statistic(distinct, counts[None].astype(np.float64))
        yield from ((name, float(made[name][0])) for name in _FIGURES if name in made and np.isfinite(made[name][0]))
