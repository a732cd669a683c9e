"""Intruder tasks: the share of right answers, differences of shares, and agreement of raters, with their intervals.

Several raters of one item are not as many independent answers: intervals are those of as many answers as would tell as
much, by the spread between items (Kish's design effect), and with Student's quantile for so few items.

Chang et al. 2009 (intrusion tasks); Wilson 1927; Newcombe 1998, method 10; Fleiss 1971; Kish 1965.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

CHOICES = 5
"""Excerpts of an item."""


@dataclass(frozen=True)
class Item:
    """What is known of a question."""

    sae: int
    """Number of its SAE."""
    has_latent: bool
    """False for a control."""
    intruder: int
    """Which of the excerpts, from 0."""


Answers = dict[str, int]
"""Item -> the excerpt that a rater took for the intruder."""


def intrusion_scores(
    items: dict[str, Item], raters: Sequence[Answers], sae: int, untrained: int | None
) -> dict[str, float]:
    """The numbers of one SAE; those that no answer tells are left out.

    Args:
        untrained: number of the SAE whose accuracy is `random_sae`.
    """
    own = {name: item for name, item in items.items() if item.sae == sae and item.has_latent}
    found: dict[str, float] = {"raters": float(len(raters))}
    mine = _share(own, raters)
    found["answers"] = float(mine.answers)
    if mine.answers:
        low, high = mine.interval
        found |= {"accuracy": mine.share, "accuracy_low": low, "accuracy_high": high}
    controls = _share({name: item for name, item in items.items() if not item.has_latent}, raters)
    of_untrained = _share({n: item for n, item in items.items() if item.sae == untrained and item.has_latent}, raters)
    for other, name, less in ((controls, "control", "difference"), (of_untrained, "random_sae", "over_random")):
        if other.answers:
            found[name] = other.share
        if mine.answers and other.answers and not (name == "random_sae" and sae == untrained):
            low, high = newcombe_interval(mine, other)
            found |= {less: mine.share - other.share, f"{less}_low": low, f"{less}_high": high}
    kappa = fleiss_kappa([[answers[name] for answers in raters] for name in own if all(name in a for a in raters)])
    return found if kappa is None else {**found, "kappa": kappa}


@dataclass(frozen=True)
class Share:
    """Of right answers to some items."""

    share: float
    answers: int
    worth: float
    """Independent answers that would tell as much."""
    quantile: float
    """How many standard errors make 95 %."""

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.share, self.worth, self.quantile)


def _share(items: dict[str, Item], raters: Sequence[Answers]) -> Share:
    by_item = [
        [answers[name] == item.intruder for answers in raters if name in answers] for name, item in items.items()
    ]
    return share_of([one for one in by_item if one])


def share_of(by_item: list[list[bool]]) -> Share:
    """Of right answers, item by item. One answer to each is worth itself; more are worth what items leave of them."""
    from scipy.stats import norm
    from scipy.stats import t as student

    answers, count = sum(len(one) for one in by_item), len(by_item)
    share = sum(sum(one) for one in by_item) / answers if answers else 0.0
    if answers == count or count < 2:
        return Share(share, answers, float(count), float(norm.ppf(0.975)))
    most = answers / count  # raters of an item
    independent = share * (1 - share) / answers
    between = sum((sum(one) - len(one) * share) ** 2 for one in by_item) * count / (count - 1) / answers**2
    effect = most if independent == 0 else min(max(between / independent, 1.0), most)
    return Share(share, answers, answers / effect, float(student.ppf(0.975, count - 1)))


def wilson_interval(share: float, answers: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval of a share, at z standard errors."""
    middle = (share + z * z / (2 * answers)) / (1 + z * z / answers)
    half = z / (1 + z * z / answers) * math.sqrt(share * (1 - share) / answers + z * z / (4 * answers**2))
    return middle - half, middle + half


def newcombe_interval(one: Share, other: Share) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares, from Wilson's intervals of both."""
    p, q = one.share, other.share
    (low, high), (other_low, other_high) = one.interval, other.interval
    below = math.hypot(p - low, other_high - q)
    above = math.hypot(high - p, q - other_low)
    return p - q - below, p - q + above


def fleiss_kappa(choices: list[list[int]]) -> float | None:
    """Fleiss' kappa of items x raters; None for fewer than two raters, no item, or one choice throughout."""
    if not choices or len(choices[0]) < 2:
        return None
    raters = len(choices[0])
    counts = [Counter(row) for row in choices]
    agreed = sum(sum(n * (n - 1) for n in row.values()) for row in counts) / (len(counts) * raters * (raters - 1))
    totals = Counter(choice for row in choices for choice in row)
    by_chance = sum((n / (len(choices) * raters)) ** 2 for n in totals.values())
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
