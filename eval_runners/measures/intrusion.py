"""Intruder tasks: the share of right answers, differences of shares, and agreement of raters, with their intervals.

Several raters of one item do not give as many independent answers. Intervals are therefore those of the effective
number of answers, by the spread between items (Kish's design effect), with Student's quantile because items are few.

Source: Chang et al. 2009 (intrusion tasks); Wilson 1927; Newcombe 1998, method 10; Fleiss 1971; Kish 1965.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CHOICES = 5
"""Excerpts of an item."""


@dataclass(frozen=True)
class Item:
    """The solution of a question."""

    sae: int
    """Number of the SAE, from 0."""
    has_latent: bool
    """False for a control."""
    intruder: int
    """Number of the excerpt that is the intruder, from 0."""


Answers = dict[str, int]
"""Item -> number of the excerpt that a rater takes for the intruder."""


@dataclass(frozen=True)
class Share:
    """A share of right answers."""

    share: float
    """Right answers relative to all answers; 0 without answers."""
    answers: int
    """Number of answers."""
    effective: float
    """Number of independent answers that would be as informative."""
    quantile: float
    """Half width of a 95 % interval, in standard errors."""

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson_interval(self.share, self.effective, self.quantile)


def intrusion_scores(
    items: Mapping[str, Item], raters: Sequence[Answers], sae: int, untrained: int | None
) -> dict[str, float]:
    """Score one SAE of a study.

    Args:
        items: question -> solution, of all SAEs.
        raters: answers of each rater, of one kind.
        sae: number of the SAE.
        untrained: number of the SAE whose accuracy is `random_sae`, or None.

    Returns:
        Name of a metric of `human_study` -> number. Metrics for which there are no answers are left out.
    """
    items_of_sae = {name: item for name, item in items.items() if item.sae == sae and item.has_latent}
    controls = {name: item for name, item in items.items() if not item.has_latent}
    items_of_untrained = {name: item for name, item in items.items() if item.sae == untrained and item.has_latent}
    accuracy = _accuracy(items_of_sae, raters)
    scores = {"raters": float(len(raters)), "answers": float(accuracy.answers)}
    if accuracy.answers:
        scores["accuracy"] = accuracy.share
        scores["accuracy_low"], scores["accuracy_high"] = accuracy.interval
    baselines = (
        (_accuracy(controls, raters), "control", "difference"),
        (_accuracy(items_of_untrained, raters), "random_sae", "over_random"),
    )
    for baseline, name, difference in baselines:
        if baseline.answers:
            scores[name] = baseline.share
        against_itself = name == "random_sae" and sae == untrained
        if accuracy.answers and baseline.answers and not against_itself:
            scores[difference] = accuracy.share - baseline.share
            scores[f"{difference}_low"], scores[f"{difference}_high"] = newcombe_interval(accuracy, baseline)
    answered_by_all = [name for name in items_of_sae if all(name in answers for answers in raters)]
    kappa = kappa_of([[answers[name] for answers in raters] for name in answered_by_all])
    return scores if kappa is None else {**scores, "kappa": kappa}


def _accuracy(items: Mapping[str, Item], raters: Sequence[Answers]) -> Share:
    right = [[answers[name] == item.intruder for answers in raters if name in answers] for name, item in items.items()]
    return share_of([answers for answers in right if answers])


def share_of(right: Sequence[Sequence[bool]]) -> Share:
    """The share of right answers, and how many independent answers they are worth.

    Where each item has one answer, answers are independent. Else their number is divided by the design effect, the
    variance between items relative to that of independent answers, which lies between 1 and the raters of an item.

    Args:
        right: whether each answer is right, a sequence per item.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    answers, items = sum(len(item) for item in right), len(right)
    share = sum(sum(item) for item in right) / answers if answers else 0.0
    if answers == items or items < 2:
        return Share(share, answers, float(items), float(norm.ppf(0.975)))
    raters = answers / items
    independent = share * (1 - share) / answers
    between = sum((sum(item) - len(item) * share) ** 2 for item in right) * items / (items - 1) / answers**2
    design_effect = raters if independent == 0 else min(max(between / independent, 1.0), raters)
    return Share(share, answers, answers / design_effect, float(student.ppf(0.975, items - 1)))


def wilson_interval(share: float, answers: float, quantile: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval of a share.

    Args:
        share: right answers relative to all answers.
        answers: number of independent answers; need not be whole.
        quantile: half width in standard errors.
    """
    import numpy as np
    from scipy.stats import norm
    from statsmodels.stats.proportion import proportion_confint

    alpha = 2 * float(norm.sf(quantile))
    low, high = proportion_confint(share * answers, answers, alpha=alpha, method="wilson")
    return np.asarray(low).item(), np.asarray(high).item()


def newcombe_interval(share: Share, other: Share) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares, from the Wilson interval of each.

    statsmodels' `confint_proportions_2indep(method="newcomb")` takes one confidence level for both shares. Here each
    share has a quantile of Student's distribution with degrees of freedom of its items, hence Newcombe's formula.
    """
    (low, high), (other_low, other_high) = share.interval, other.interval
    difference = share.share - other.share
    below = math.hypot(share.share - low, other_high - other.share)
    above = math.hypot(high - share.share, other.share - other_low)
    return difference - below, difference + above


def kappa_of(choices: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa of the choices [items][raters].

    Returns:
        None for no item, for fewer than two raters, and where every choice is the same.
    """
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    if not choices or len(choices[0]) < 2 or len({choice for item in choices for choice in item}) == 1:
        return None
    return float(fleiss_kappa(aggregate_raters(choices)[0]))
