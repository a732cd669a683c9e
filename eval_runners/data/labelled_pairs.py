"""Texts with two labels each, for spurious correlations: a news item, followed by a review.

The first label is the topic of the item, the second the sentiment of the review. Train and test texts share neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from eval_runners.data.labelled import TEST_ONE_IN, distinct_classes

if TYPE_CHECKING:
    import pandas as pd

PAIRED = "sandbox/ag_news+yelp_sentiment"
"""Name of the dataset."""
PAIRS = (("0", "1"), ("2", "3"))
"""Pairs of topics that are told apart: world and sport, business and science."""
FIRST, SECOND, TEXT = "topic", "sentiment", "text"
"""Columns of `paired_texts`."""


def labels_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the values of both labels."""
    first, second = (tuple(distinct_classes(part)) for part in _parts(name))
    return first, second


@cache
def paired_texts(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the train and the test texts of a dataset, with a row for each."""
    import pandas as pd

    first, second = (distinct_classes(part) for part in _parts(name))

    def rows(is_test: bool) -> Iterator[dict[str, str]]:
        for topic, items in first.items():
            for number, (sentiment, reviews) in enumerate(second.items()):
                own = items[number :: len(second)]  # an item stands before one review only
                for item, review in zip(_part(own, is_test), _part(reviews, is_test), strict=False):
                    yield {FIRST: topic, SECOND: sentiment, TEXT: f"{item} {review}"}

    return pd.DataFrame(rows(False)), pd.DataFrame(rows(True))


def fewest_texts(name: str) -> tuple[int, int]:
    """Return how many train and how many test texts the rarest pair of labels has."""
    train, test = (int(part.groupby([FIRST, SECOND]).size().min()) for part in paired_texts(name))
    return train, test


def _parts(name: str) -> tuple[str, str]:
    first, _, second = name.partition("+")
    return first, f"sandbox/{second}"


def _part(texts: list[str], is_test: bool) -> list[str]:
    return [text for number, text in enumerate(texts) if (number % TEST_ONE_IN == 0) == is_test]
