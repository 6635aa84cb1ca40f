"""Split documents so that what belongs together stays together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ml_filter.prepare.minhash import first_of_cluster, shared_buckets


def host_of(url: object) -> str | None:
    """The host of a URL without `www.`; None where there is none."""
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:  # such as http://[
        return None
    return host.removeprefix("www.") if host else None


def name_keys(names: Sequence[str | None], first: int) -> NDArray[np.uint64]:
    """A key for each name, equal for equal names; a missing one is like no other. `first` numbers the first row."""
    whole = [f"name {name}" if name is not None else f"row {first + row}" for row, name in enumerate(names)]
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in whole)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def group_documents(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The group of each document, as the number of its first document.

    Args:
        keys: documents x keys; documents with one key in common, directly or through others, are a group.
    """
    shared = shared_buckets(np.ascontiguousarray(keys[:, column]) for column in range(keys.shape[1]))
    return first_of_cluster(shared, len(keys))


def assign_splits(
    groups: NDArray[np.int64], classes: NDArray[Any], order: NDArray[np.uint64], shares: Sequence[float]
) -> NDArray[np.int64]:
    """The split of each document: whole groups go to the split that lacks most of what they hold.

    Groups too large for the smallest split come first, the largest first; the others in a random order that does not
    depend on the order of the documents. So splits have their shares, and of each class too, as far as groups allow.

    Args:
        groups: the group of each document.
        classes: the class of each document, to stratify by; or several, [documents, criteria], to stratify by each.
        order: a random number for each document; that of a group is its smallest.
        shares: of the splits, summing to 1; a split with share 0 stays empty.
    """
    if not len(groups):
        return np.empty(0, dtype=np.int64)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    criteria = classes.reshape(len(groups), -1).T
    held = np.hstack([_held(group_of, len(sizes), one) for one in criteria])
    first = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first, group_of, order)
    used = np.flatnonzero(np.array(shares) > 0)
    lacking = np.array(shares)[used, None] * held.sum(axis=0)
    large = np.where(sizes > lacking.sum(axis=1).min() / len(criteria), sizes, 0)
    split_of_group = np.zeros(len(sizes), dtype=np.int64)
    for group in np.lexsort((first, -large)).tolist():
        # The choice that leaves the smallest sum of squares lacking.
        chosen = int(np.argmax(lacking @ held[group]))
        lacking[chosen] -= held[group]
        split_of_group[group] = used[chosen]
    return split_of_group[group_of]


def _held(group_of: NDArray[np.int64], groups: int, classes: NDArray[Any]) -> NDArray[np.int64]:
    """How many documents of each class each group holds, [groups, classes]."""
    _, class_of = np.unique(classes, return_inverse=True)
    held = np.zeros((groups, class_of.max() + 1), dtype=np.int64)
    np.add.at(held, (group_of, class_of), 1)
    return held
