"""human_study: do people tell where a latent fires?

An item shows five excerpts: four in which one latent fires, and an intruder, in which another one does. Of each SAE the
share of answers that name the intruder, with Wilson's 95 % interval over answers; the difference to items without a
latent of their own, whose five excerpts are of five latents and whose intruder is drawn by lot, with Newcombe's
interval; and Fleiss' kappa, how far raters agree beyond chance on items that all of them answered. Answers of language
models are counted apart. It is asked and scored by `python -m eval_runners human-study`.

Chang et al. 2009 (intrusion tasks); Wilson 1927; Newcombe 1998, method 10; Fleiss 1971.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval_runners._contract import Metric

NAME = "human_study"
CATEGORIES = ("people", "models")
CHOICES = 5
_TITLES = {
    "accuracy": "share of answers that name the intruder",
    "accuracy_low": "lower end of its 95 % interval",
    "accuracy_high": "upper end of its 95 % interval",
    "control": "the same of items without a latent of their own",
    "random_sae": "the same of an untrained SAE",
    "difference": "accuracy less the control's",
    "difference_low": "lower end of its 95 % interval",
    "difference_high": "upper end of its 95 % interval",
    "kappa": "Fleiss' kappa between raters",
    "raters": "raters",
    "answers": "answers",
}
_SHORT = {"accuracy": "intruder found", "difference": "less control", "kappa": "kappa"}
MADE_BY = "python -m eval_runners human-study make, and score"
"""Its results need people: there is no `evaluate`."""


@dataclass(frozen=True)
class EvalConfig:
    items: int = 10
    """Items of each SAE."""
    controls: int = 4
    """Items of each SAE whose excerpts are all of different latents."""
    strongest: int = 12
    """Excerpts are drawn from so many contexts in which a latent fires most."""
    n_contexts: int = 512
    """Held-out contexts that excerpts are from."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    seed: int = 0
    """Seed of latents, excerpts and their order."""


METRICS = tuple(
    Metric(
        f"{prefix}{name}", f"{title}{whose}", "higher" if name in _SHORT else "neither",
        f"eval_result_metrics.{category}.{name}", short=f"{_SHORT[name]}{whose}" if name in _SHORT else "",
    )
    for category, prefix, whose in (("people", "", ""), ("models", "model_", ", language models"))
    for name, title in _TITLES.items()
)  # fmt: skip


def output_class() -> type:
    from eval_runners import _envelope

    return _envelope.envelope_class(NAME, EvalConfig, CATEGORIES, tuple(_TITLES))


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


def scores(items: dict[str, Item], raters: Sequence[Answers], sae: int, untrained: int | None) -> dict[str, float]:
    """The numbers of one SAE; those that no answer tells are left out.

    Args:
        untrained: number of the SAE whose accuracy is `random_sae`.
    """
    own = {name: item for name, item in items.items() if item.sae == sae and item.has_latent}
    right, total = _right(own, raters)
    found: dict[str, float] = {"raters": float(len(raters)), "answers": float(total)}
    if total:
        low, high = wilson(right, total)
        found |= {"accuracy": right / total, "accuracy_low": low, "accuracy_high": high}
    right_c, total_c = _right({name: item for name, item in items.items() if not item.has_latent}, raters)
    if total_c:
        found["control"] = right_c / total_c
    if total and total_c:
        low, high = newcombe(right, total, right_c, total_c)
        found |= {"difference": right / total - right_c / total_c, "difference_low": low, "difference_high": high}
    right_r, total_r = _right(
        {n: item for n, item in items.items() if item.sae == untrained and item.has_latent}, raters
    )
    if total_r:
        found["random_sae"] = right_r / total_r
    kappa = fleiss([[answers[name] for answers in raters] for name in own if all(name in a for a in raters)])
    return found if kappa is None else {**found, "kappa": kappa}


def _right(items: dict[str, Item], raters: Sequence[Answers]) -> tuple[int, int]:
    given = [answers[name] == item.intruder for name, item in items.items() for answers in raters if name in answers]
    return sum(given), len(given)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def newcombe(right: int, total: int, other_right: int, other_total: int) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares, from Wilson's intervals of both."""
    p, q = right / total, other_right / other_total
    (low, high), (other_low, other_high) = wilson(right, total), wilson(other_right, other_total)
    below = math.hypot(p - low, other_high - q)
    above = math.hypot(high - p, q - other_low)
    return p - q - below, p - q + above


def fleiss(choices: list[list[int]]) -> float | None:
    """Fleiss' kappa of items x raters; None for fewer than two raters, no item, or one choice throughout."""
    if not choices or len(choices[0]) < 2:
        return None
    raters = len(choices[0])
    counts = [Counter(row) for row in choices]
    agreed = sum(sum(n * (n - 1) for n in row.values()) for row in counts) / (len(counts) * raters * (raters - 1))
    totals = Counter(choice for row in choices for choice in row)
    by_chance = sum((n / (len(choices) * raters)) ** 2 for n in totals.values())
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


if __name__ == "__main__":
    import sys

    from eval_runners._human_study import main
    from sae_variants._errors import run_command

    run_command(lambda: main(sys.argv[1:]))
