"""Split documents so that related documents are in the same split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ml_filter.prepare.minhash import first_of_cluster, shared_buckets


def host_of(url: object) -> str | None:
    """The host of a URL without `www.`; None: it has no host."""
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:  # such as http://[
        return None
    return host.removeprefix("www.") if host else None


def name_keys(names: Sequence[str | None], first: int) -> NDArray[np.uint64]:
    """A key for each name, the same for equal names; each None gets a new key. `first` is the number of row 0."""
    unique = [f"name {name}" if name is not None else f"row {first + row}" for row, name in enumerate(names)]
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in unique)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def group_documents(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The group of each document, as the number of its first document.

    Args:
        keys: [documents, keys]; documents with a key in common, directly or through others, are a group.
    """
    shared = shared_buckets(np.ascontiguousarray(keys[:, column]) for column in range(keys.shape[1]))
    return first_of_cluster(shared, len(keys))


def assign_splits(
    groups: NDArray[np.int64], classes: NDArray[Any], order: NDArray[np.uint64], shares: Sequence[float]
) -> NDArray[np.int64]:
    """The split of each document: each group goes to the split that most needs its documents.

    Groups that are too large for the smallest split come first, in descending order of size; the others follow in a
    random order that does not depend on the order of the documents. So each split has its share of the documents, and
    of each class, as far as the groups allow.

    Args:
        groups: the group of each document.
        classes: the class of each document, to stratify by; or, as [documents, criteria], a class for each criterion.
        order: a random number for each document; that of a group is the smallest of its documents.
        shares: of the splits, summing to 1; a split with share 0 stays empty.
    """
    if not len(groups):
        return np.empty(0, dtype=np.int64)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    criteria = classes.reshape(len(groups), -1).T
    counts = np.hstack([_class_counts(group_of, len(sizes), column) for column in criteria])
    first = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first, group_of, order)
    used = np.flatnonzero(np.array(shares) > 0)
    missing = np.array(shares)[used, None] * counts.sum(axis=0)
    large = np.where(sizes > missing.sum(axis=1).min() / len(criteria), sizes, 0)
    split_of_group = np.zeros(len(sizes), dtype=np.int64)
    for group in np.lexsort((first, -large)).tolist():
        # |missing - counts|**2 over all splits is smallest where the dot product of the two is greatest.
        chosen = int(np.argmax(missing @ counts[group]))
        missing[chosen] -= counts[group]
        split_of_group[group] = used[chosen]
    return split_of_group[group_of]


def _class_counts(group_of: NDArray[np.int64], groups: int, classes: NDArray[Any]) -> NDArray[np.int64]:
    """How many documents of each class each group has, [groups, classes]."""
    _, class_of = np.unique(classes, return_inverse=True)
    counts = np.zeros((groups, class_of.max() + 1), dtype=np.int64)
    np.add.at(counts, (group_of, class_of), 1)
    return counts
