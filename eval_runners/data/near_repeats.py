"""Near-repeats among labelled documents: two documents that share many runs of five words."""

from __future__ import annotations

import re
from typing import Any

from eval_runners.data.task_files import Classes
from sae_variants.sandbox.corpus import content_key

READ_CHARACTERS = 600
"""Characters of a document that are compared, about as many as a probe's 128 tokens."""
SHARED = 0.3
"""Share of the shorter document's runs of five words above which two documents are near-repeats."""
AT_ONCE = 1000
"""Documents compared with all others at a time."""


def word_runs(text: str) -> list[str]:
    """List every run of five words in lower case; a shorter text is a single run."""
    words = re.findall(r"\w+", text[:READ_CHARACTERS].lower()) or [text.strip()]
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def drop_near_repeats(classes: Classes) -> Classes:
    """Keep one document of each group of near-repeats, in an order that depends on content alone.

    Near-repeats share more than `SHARED` of the shorter document's runs of five words. The relation is transitive:
    repeats of repeats belong to the same group. A document with several labels, or a group that holds several, has no
    right answer and is left out.
    """
    labels: dict[str, set[str]] = {}
    for label, documents in classes.items():
        for text in documents:
            labels.setdefault(text, set()).add(label)
    texts = sorted((text for text in labels if text.strip()), key=content_key)
    groups: dict[int, list[str]] = {}
    for text, number in zip(texts, _group_numbers(texts), strict=True):
        groups.setdefault(number, []).append(text)
    kept: Classes = {label: [] for label in classes}
    for members in groups.values():
        labels_of_group = set().union(*(labels[text] for text in members))
        if len(labels_of_group) == 1:
            kept[labels_of_group.pop()].append(members[0])
    return kept


def _group_numbers(texts: list[str]) -> list[int]:
    """Number the groups of near-repeats, and return the number of each text's group."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer=word_runs,  # pyright: ignore[reportArgumentType]
        n_features=2**22,
        norm=None,  # pyright: ignore[reportArgumentType]
        alternate_sign=False,
        binary=True,
    )
    runs: Any = vectorizer.transform(texts)
    transposed = runs.T.tocsr()
    count = np.asarray(runs.sum(1)).ravel()
    rows, columns = [], []
    for start in range(0, len(texts), AT_ONCE):
        shared = (runs[start : start + AT_ONCE] @ transposed).tocoo()
        near = shared.data > SHARED * np.minimum(count[start + shared.row], count[shared.col])
        rows.append(start + shared.row[near])
        columns.append(shared.col[near])
    row, column = np.concatenate(rows), np.concatenate(columns)
    links = coo_matrix((np.ones(len(row)), (row, column)), shape=(len(texts), len(texts)))
    return connected_components(links, directed=False)[1].tolist()
