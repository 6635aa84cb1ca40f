"""All labels in memory: which documents are for the test, and whether the labels can train a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import Groups, LabelledDocuments, text_keys
from ml_filter.heads.profile import script_of
from ml_filter.prepare.sampling import sampling_key
from ml_filter.progress import progress
from ml_filter.statistics.intervals import Array

MIN_LABELS = 20


@dataclass(frozen=True)
class LabelTable:
    """Columns over all labelled documents.

    Attributes:
        labels: [documents, criteria]; NaN: no label.
        weights: [documents, criteria].
        is_test: whether a document is for the test.
        groups: the number of its group (see `Groups`).
        bytes: length of its text in UTF-8.
        scripts: writing system of its text.
        texts: its `text_keys`.
    """

    labels: Array
    weights: Array
    is_test: NDArray[np.bool_]
    groups: NDArray[np.uint64]
    bytes: NDArray[np.int64]
    scripts: NDArray[np.str_]
    texts: NDArray[np.uint64]


def read_label_table(data: LabelledDocuments, add: Callable[[Sequence[str]], None], config: TrainConfig) -> LabelTable:
    """Pass all texts to `add`, chunk by chunk, and keep everything else.

    Raises:
        InputError: no document has a label.
    """
    labels, weights, texts = [], [], []
    keys: list[int] = []
    lengths: list[int] = []
    scripts: list[str] = []
    groups = Groups(config.near_duplicates)
    with progress(f"Reading labelled documents ({config.kind})") as bar:
        for chunk in data:
            add(chunk.texts)
            groups.add(chunk)
            labels.append(chunk.labels)
            weights.append(chunk.weights)
            keys += [sampling_key(group, config.seed, "test") for group in chunk.groups]
            lengths += [len(text.encode("utf-8", "surrogatepass")) for text in chunk.texts]
            scripts += map(script_of, chunk.texts)
            texts.append(text_keys(chunk.texts))
            bar.advance(len(chunk.ids))
    if not keys:
        raise InputError(f"no document has a label of {', '.join(data.names)}")
    group_of = groups.draw(keys)
    return LabelTable(
        labels=np.concatenate(labels),
        weights=np.concatenate(weights),
        is_test=choose_test_documents(group_of, config.test_share),
        groups=group_of,
        bytes=np.array(lengths),
        scripts=np.array(scripts),
        texts=np.concatenate(texts),
    )


def choose_test_documents(groups: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents [n] are for the test, by the number [n] of their groups.

    Groups stay whole. The one with the smallest number comes first; each is taken if it brings the number of test
    documents closer to `share`, so that a few large groups do not all end up on one side.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    taken, target, chosen = 0, share * len(groups), np.zeros(len(sizes), bool)
    for group, size in enumerate(sizes.tolist()):
        if abs(taken + size - target) < abs(taken - target) and taken + size < len(groups):
            chosen[group] = True
            taken += size
    is_test: NDArray[np.bool_] = chosen[group_of]
    return is_test


def check_labels(table: LabelTable, criteria: Sequence[Criterion]) -> None:
    """Refuse labels that cannot train a head.

    Raises:
        InputError: the labels of a criterion are too few, outside its score range, or identical.
    """
    for column, criterion in enumerate(criteria):
        labelled = ~np.isnan(table.labels[:, column])
        values, is_test = table.labels[labelled, column], table.is_test[labelled]
        suffix = f" of {criterion.name}" if len(criteria) > 1 else ""
        if len(values) < MIN_LABELS:
            raise InputError(
                f"too few labels{suffix}: {len(values)} ({int(is_test.sum())} of them for the test); at least "
                f"{MIN_LABELS} are required, and thousands are better"
            )
        if is_test.all() or not is_test.any():
            count = len(np.unique(table.groups[labelled]))
            raise InputError(
                f"the {len(values):,} labelled documents{suffix} are from {count} host{'s' * (count > 1)} or "
                f"group{'s' * (count > 1)} of near-duplicates, which are never split, so none is left for "
                f"{'training' if is_test.all() else 'the test'}; add labels from more hosts, ideally hundreds"
            )
        outside = (values < criterion.low) | (values > criterion.high)
        if outside.any():
            raise InputError(
                f"{int(outside.sum())} labels{suffix} are outside the score range {criterion.low:g} to "
                f"{criterion.high:g} (the first is {values[outside][0]:g}); set score_range (--score-range LOW HIGH)"
            )
        if len(np.unique(values[~is_test])) < 2:
            raise InputError(f"all labels{suffix} are {values[0]:g}, so there is nothing to learn")


def check_folds(labels: Array, folds: NDArray[np.int64], criteria: Sequence[Criterion]) -> None:
    """Refuse folds [documents] of which one has all labels [documents, criteria] of a criterion.

    Raises:
        InputError: names the criterion.
    """
    for column, criterion in enumerate(criteria):
        labelled = ~np.isnan(labels[:, column])
        if len(np.unique(folds[labelled])) < 2:
            raise InputError(
                f"all {int(labelled.sum()):,} training documents with a label of {criterion.name} are in one fold, "
                "because they are from one or a few hosts or nearly the same, so they cannot be cross-validated; add "
                "labels from more hosts, or leave the criterion out"
            )
