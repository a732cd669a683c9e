"""human_study: do people tell where a latent fires?

An item shows five excerpts: four in which one latent fires, and an intruder, in which another one does. Of each SAE
the share of answers that name the intruder, with Wilson's 95 % interval; the difference to an untrained SAE, with
Newcombe's interval, and to controls, items whose five excerpts are of five latents and whose intruder is drawn by lot:
who finds that one more often than by chance finds it by something else; and Fleiss' kappa, how far raters agree beyond
chance on items that all of them answered. Answers of language models are counted apart. It is asked and scored by
`python -m eval_runners human-study`.

Several raters of one item are not as many independent answers: intervals are those of as many answers as would tell as
much, by the spread between items (Kish's design effect), and with Student's quantile for so few items.

Chang et al. 2009 (intrusion tasks); Wilson 1927; Newcombe 1998, method 10; Fleiss 1971; Kish 1965.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval_runners.contract.contract import Metric

NAME = "human_study"
CATEGORIES = ("people", "models")
_TITLES = {
    "accuracy": "share of answers that name the intruder",
    "accuracy_low": "lower end of its 95 % interval",
    "accuracy_high": "upper end of its 95 % interval",
    "control": "the same of items without a latent of their own",
    "difference": "accuracy less the control's",
    "difference_low": "lower end of its 95 % interval",
    "difference_high": "upper end of its 95 % interval",
    "random_sae": "the same of an untrained SAE",
    "over_random": "accuracy less the untrained SAE's",
    "over_random_low": "lower end of its 95 % interval",
    "over_random_high": "upper end of its 95 % interval",
    "kappa": "Fleiss' kappa between raters",
    "raters": "raters",
    "answers": "answers",
}
_SHORT = {"accuracy": "intruder found", "over_random": "less untrained", "difference": "less control", "kappa": "kappa"}
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
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, tuple(_TITLES))


if __name__ == "__main__":
    import sys

    from eval_runners.commands.human_study import main
    from sae_variants.common.console import run_command

    run_command(lambda: main(sys.argv[1:]))
