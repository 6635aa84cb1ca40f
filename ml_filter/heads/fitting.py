"""Fit a head on cached embeddings, and predict with it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads.balance import class_weights
from ml_filter.heads.config import HeadSettings
from ml_filter.heads.embeddings import Embeddings
from ml_filter.heads.model import KernelLayer, MlpLayer, OutputLayer, StandardisedLayer
from ml_filter.statistics.intervals import Array, single_figures
from ml_filter.statistics.rounding import integer_scores, whole_scores
from ml_filter.statistics.weighted import rank_and_distance, table_statistic

Rows = NDArray[np.float32] | Embeddings
"""Features [n, width] that are read in parts: an array, a memory map, or rows of an embedding store."""
ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 16))
SELECT_ON = 10_000
_ROWS = 4096
_KERNEL_ALPHAS = tuple(float(a) for a in np.logspace(-2, 1.5, 15))
_JITTERS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Tried in turn as an addition to the diagonal of the kernel, which is 1, until the kernel can be factorised."""
_BATCH = 64
_VALIDATION_SHARE = 0.1
_FIGURES = ("spearman", "pearson", "mae", "macro_f1")


def fit_head(
    embeddings: Embeddings,
    labels: Array,
    weights: Array,
    criteria: Sequence[Criterion],
    settings: HeadSettings,
    *,
    seed: int,
    owners: NDArray[np.int64] | None = None,
) -> OutputLayer:
    """Fit a head on embeddings [n, width]; the same input gives the same weights.

    Linear and kernel regressions are solved in closed form: ridge, with the penalty of the lowest leave-one-out error.
    Everything else is trained with AdamW, with early stopping on a tenth of the documents. Then `history` of the result
    has a row for each epoch: `step`, `epoch`, `loss` and `grad_norm` (means over its steps), `learning_rate` at its
    end, and on that tenth `eval_loss` and those `validation_figures` that are defined, as `eval_<figure>`.

    Args:
        embeddings: of the documents.
        labels: [n, criteria]; nan is missing.
        weights: [n, criteria], weights of the labels, to be multiplied by the class weights of `settings.balance`.
        criteria: their names and score ranges.
        settings: kind of head, task, size, length, balance.
        seed: draws landmarks, batches and the documents for early stopping.
        owners: [n], the index of each embedding's document; None: each embedding is a document.

    Raises:
        InputError: training diverges, no epoch gives the metric of early stopping, or the embeddings are almost equal.
    """
    owners = np.arange(len(embeddings)) if owners is None else owners
    weights = class_weights(labels, weights, settings.balance)
    size = min(settings.size, len(embeddings)) if settings.model == "kernel" else settings.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = OutputLayer(settings.model, settings.task, embeddings.shape[1], size, list(criteria))
        if isinstance(head.layer, StandardisedLayer):
            mean, scale = mean_and_scale(embeddings)
            head.layer.mean.copy_(torch.from_numpy(mean))
            head.layer.scale.copy_(torch.from_numpy(scale))
        if isinstance(head.layer, KernelLayer):
            # The unit of the kernel's length is sqrt(2) per standardised feature: the root mean square distance of two
            # documents with independent features. So it does not depend on the encoder's width or scale.
            head.layer.scale *= 2**0.5 * settings.length
            landmarks = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:size])
            head.layer.landmarks.copy_((torch.from_numpy(embeddings[landmarks]) - head.layer.mean) / head.layer.scale)
        if settings.task == "regression" and settings.model in ("linear", "kernel"):
            layer = head.layer if isinstance(head.layer, KernelLayer) else None
            coefficients, biases = fit_ridges(embeddings, labels, weights, seed=seed, layer=layer)
            with torch.no_grad():
                head.out.weight.copy_(torch.from_numpy(coefficients))
                head.out.bias.copy_(torch.from_numpy(biases))
        else:
            _descend(head, embeddings, labels, weights, settings, seed, owners)
    return head.eval().requires_grad_(False)


def predict(head: OutputLayer, embeddings: Embeddings) -> Array:
    """Scores [n, criteria] of a head for embeddings [n, width], not clamped."""
    scores = np.empty((len(embeddings), len(head.criteria)))
    with torch.inference_mode():
        for part in embeddings.blocks():
            scores[part] = head.scores(head(torch.from_numpy(embeddings[part]))).numpy()
    return scores


def fit_ridges(
    embeddings: Embeddings, labels: Array, weights: Array, *, seed: int, layer: KernelLayer | None = None
) -> tuple[Array, Array]:
    """Coefficients [criteria, features] and biases [criteria] of a ridge regression for each criterion.

    The features are the embeddings [n, width], or the output of a kernel layer. Weights [n, criteria] have mean 1 over
    the labels that are not nan; `seed` draws the documents that choose the penalty, if there are many.
    """
    fits = []
    for targets, weight in zip(labels.T, weights.T, strict=True):
        labelled = np.flatnonzero(~np.isnan(targets))
        rows = embeddings.take(labelled)
        if layer is None:
            fits.append(fit_ridge(rows, targets[labelled], weight[labelled], seed=seed)[:2])
        else:
            fits.append(_fit_kernel(layer, rows, targets[labelled], weight[labelled], seed))
    coefficients, biases = zip(*fits, strict=True)
    return np.array(coefficients), np.array(biases)


def fit_ridge(
    features: Rows,
    labels: Array,
    weights: Array,
    *,
    seed: int,
    standardise: bool = True,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[Array, float, float]:
    """Fit labels [n] to features [n, width] with document weights [n] of mean 1.

    Returns coefficients [width], bias and the chosen penalty. The penalty minimises the exact leave-one-out error of
    scikit-learn's RidgeCV, which needs no folds and so no random split. RidgeCV needs all features in memory:
    it sees at most 10,000 documents, and its penalty is scaled to the number of all documents. The coefficients are the
    solution of the normal equations over all documents, summed block by block.
    """
    from scipy.linalg import solve
    from sklearn.linear_model import RidgeCV

    count, width = features.shape
    mean, scale = mean_and_scale(features) if standardise else (np.zeros(width), np.ones(width))
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:SELECT_ON])
    search = RidgeCV(alphas=alphas).fit((features[chosen] - mean) / scale, labels[chosen], weights[chosen])
    alpha = float(search.alpha_) * count / len(chosen)

    # The bias is the coefficient of a constant feature without penalty.
    gram, moment = np.zeros((width + 1, width + 1)), np.zeros(width + 1)
    for start in range(0, count, _ROWS):
        part = slice(start, start + _ROWS)
        block = np.column_stack([(features[part] - mean) / scale, np.ones(len(labels[part]))])
        gram += block.T @ (block * weights[part, None])
        moment += block.T @ (labels[part] * weights[part])
    gram[np.diag_indices(width)] += alpha
    solution = solve(gram, moment, assume_a="pos")
    coefficients = solution[:-1] / scale
    return coefficients, float(solution[-1] - coefficients @ mean), alpha


def mean_and_scale(features: Rows) -> tuple[Array, Array]:
    """Mean and standard deviation [width] of each feature; a deviation of 0 becomes 1."""
    count, width = features.shape
    total, squares = np.zeros(width), np.zeros(width)
    for start in range(0, count, _ROWS):
        block = features[start : start + _ROWS].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    mean = total / count
    scale = np.sqrt(np.maximum(squares / count - mean**2, 0))
    scale[scale < 1e-8] = 1.0
    return mean, scale


def _fit_kernel(layer: KernelLayer, rows: Embeddings, labels: Array, weights: Array, seed: int) -> tuple[Array, float]:
    """Kernel ridge regression on landmarks (Nystroem; Williams and Seeger 2001).

    Exact kernel ridge needs the kernel of all pairs of documents: memory that grows with their square, and scoring that
    compares with every one of them. Nystroem replaces it by ridge regression on K(x, landmarks) times the inverse root
    of the landmarks' own kernel; inner products of these features approximate the kernel, and equal it if all rows are
    landmarks. So `fit_ridge` serves here too, with its exact leave-one-out penalty. The features are kept on disk.
    """
    from scipy.linalg import solve_triangular

    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="ml_filter-kernel-") as scratch:
        landmark_kernel = layer(layer.landmarks * layer.scale + layer.mean).double().numpy()
        root = _root(landmark_kernel)
        shape = (len(rows), len(landmark_kernel))
        features = np.memmap(Path(scratch) / "features", np.float32, "w+", shape=shape)
        for part in rows.blocks():
            similarities = layer(torch.from_numpy(rows[part])).double().numpy()
            features[part] = solve_triangular(root, similarities.T, lower=True).T
        # Not standardised: that would change the kernel, which already has the scale 1.
        coefficients, bias, _ = fit_ridge(
            features, labels, weights, seed=seed, standardise=False, alphas=_KERNEL_ALPHAS
        )
    return solve_triangular(root, coefficients, lower=True, trans="T"), bias


def _root(kernel: Array) -> Array:
    """The Cholesky factor of a kernel matrix, which rounding may have made slightly indefinite."""
    from scipy.linalg import LinAlgError, cholesky

    for jitter in _JITTERS:
        try:
            root: Array = cholesky(kernel + jitter * np.eye(len(kernel)), lower=True)
        except LinAlgError:
            continue
        return root
    raise InputError(
        f"the embeddings of {len(kernel):,} documents are too similar for a kernel; set head.model to linear, or use "
        "documents that differ more"
    )


def _descend(
    head: OutputLayer,
    embeddings: Embeddings,
    labels: Array,
    weights: Array,
    settings: HeadSettings,
    seed: int,
    owners: NDArray[np.int64],
) -> None:
    """Train with AdamW on batches of cached embeddings; keep the weights that did best on a tenth of the documents."""
    random = np.random.default_rng(seed)
    documents = int(owners.max()) + 1
    held = max(1, round(documents * _VALIDATION_SHARE))
    rank = np.argsort(random.permutation(documents))[owners]  # of each embedding's document in a random order
    validation, training = np.split(np.argsort(rank, kind="stable"), [int((rank < held).sum())])
    validation = np.sort(validation)
    mean, scale = (torch.from_numpy(array).float() for array in mean_and_scale(embeddings))
    if isinstance(head.layer, MlpLayer):
        mean, scale = torch.zeros_like(mean), torch.ones_like(scale)  # its layer standardises
    with torch.no_grad():  # start at the mean label
        for index, parts in enumerate(head.out.bias.split(head.sizes)):
            parts.fill_(float(np.nanmean(labels[:, index])) if settings.task == "regression" else 0.0)
    targets = (torch.from_numpy(labels).float(), torch.from_numpy(weights).float())

    def forward(indices: NDArray[np.int64]) -> tuple[list[torch.Tensor], torch.Tensor]:
        logits = head((torch.from_numpy(embeddings[indices]) - mean) / scale)
        return logits, head.loss(logits, targets[0][indices], targets[1][indices])

    def evaluate() -> dict[str, float]:
        logits, loss = forward(validation)
        figures = validation_figures(head.scores(logits).numpy(), labels[validation], head.criteria)
        return {"loss": float(loss), **figures}

    _descend_by(head, training, forward, evaluate, settings, random)
    if isinstance(head.layer, nn.Identity):  # fold the standardisation into the weights
        with torch.no_grad():
            head.out.weight.div_(scale)
            head.out.bias.sub_(head.out.weight @ mean)


def _descend_by(
    head: OutputLayer,
    training: NDArray[np.int64],
    forward: Callable[[NDArray[np.int64]], tuple[list[torch.Tensor], torch.Tensor]],
    evaluate: Callable[[], dict[str, float]],
    settings: HeadSettings,
    random: np.random.Generator,
) -> None:
    """The epochs: warm-up, decay, early stopping, history."""
    from transformers import get_scheduler  # it loads peft and bitsandbytes where they are installed

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
            gradients = [param.grad for param in head.parameters() if param.grad is not None]
            norms.append(float(nn.utils.get_total_norm(gradients)))
            optimizer.step()
            rates.step()
            losses.append(loss.item())
        head.eval()
        with torch.inference_mode():
            figures = evaluate()
        row = {"step": rates.last_epoch, "epoch": epoch, "loss": np.mean(losses), "grad_norm": np.mean(norms)}
        row |= {"learning_rate": rates.get_last_lr()[0]} | {f"eval_{name}": value for name, value in figures.items()}
        head.history.append({name: float(value) for name, value in row.items() if np.isfinite(value)})
        metric = -figures["loss"] if settings.metric == "loss" else figures[settings.metric]
        if metric > best:
            best, waited = metric, 0
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
            f"no epoch could compute {settings.metric} on the held-out documents: their labels or scores do not vary, "
            "or the loss is not finite; provide more documents, lower head.learning_rate, or set head.metric: loss"
        )
    head.load_state_dict(best_state)


def validation_figures(
    scores: NDArray[np.floating], labels: NDArray[np.floating], criteria: Sequence[Criterion]
) -> dict[str, float]:
    """Spearman, Pearson, MAE and macro-F1 of scores against labels, both [n, criteria]; a label of nan is missing.

    The means over the criteria, nan if undefined; with several criteria also each one's, as `<figure>_<criterion>`.
    """
    figures: dict[str, float] = {}
    values: dict[str, list[float]] = {name: [] for name in _FIGURES}
    for index, criterion in enumerate(criteria):
        rows = np.column_stack([labels[:, index], scores[:, index]]).astype(np.float64)
        for name, value in _figures_of(rows[np.isfinite(rows).all(axis=1)], criterion):
            values[name].append(value)
            if len(criteria) > 1:
                figures[f"{name}_{criterion.name}"] = value
    return figures | {name: float(np.mean(each)) if each else float("nan") for name, each in values.items()}


def _figures_of(rows: Array, criterion: Criterion) -> Iterator[tuple[str, float]]:
    """The defined figures of (label, score) rows. Called in every epoch, and so without intervals and other figures."""
    if not len(rows):
        return
    span = np.array(whole_scores(criterion.low, criterion.high), np.float64)
    rounded = integer_scores(rows, criterion.low, criterion.high).astype(np.float64)
    figures = single_figures(rows, rank_and_distance) | single_figures(rounded, table_statistic(span))
    yield from ((name, value) for name in _FIGURES if (value := figures[name]) is not None)
