"""Can people tell where a latent fires?

An item shows five excerpts: four in which one latent fires, and an intruder, in which another latent fires. The
accuracy of an SAE is the share of answers that name the intruder, with Wilson's 95 % interval. There are two baselines,
and the differences to both have Newcombe's interval: an untrained SAE, and controls, which are items with excerpts of
five latents of which one is the intruder by chance. Accuracy above chance on controls means that raters use something
other than the latent. Fleiss' kappa measures how far raters agree beyond chance on the items that all of them answered.
Answers of language models are counted separately. `python -m eval_runners human-study` makes the questions and scores
the answers.

Several raters of one item do not give as many independent answers. Intervals are therefore those of the effective
number of answers, by the spread between items (Kish's design effect), with Student's quantile because items are few.

Source: Chang et al. 2009 (intrusion tasks); Wilson 1927; Newcombe 1998, method 10; Fleiss 1971; Kish 1965.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval_runners.contract.contract import Evaluator, Metric

TITLES = {
    "accuracy": "share of answers that name the intruder",
    "accuracy_low": "lower end of the 95 % interval of the accuracy",
    "accuracy_high": "upper end of the 95 % interval of the accuracy",
    "control": "share of answers to controls that name the intruder",
    "difference": "accuracy minus the controls'",
    "difference_low": "lower end of the 95 % interval of the difference to controls",
    "difference_high": "upper end of the 95 % interval of the difference to controls",
    "random_sae": "accuracy of an untrained SAE",
    "over_random": "accuracy minus the untrained SAE's",
    "over_random_low": "lower end of the 95 % interval of the difference to an untrained SAE",
    "over_random_high": "upper end of the 95 % interval of the difference to an untrained SAE",
    "kappa": "Fleiss' kappa between raters",
    "raters": "raters",
    "answers": "answers",
}
SHORT = {
    "accuracy": "intruder found",
    "over_random": "less untrained",
    "difference": "less control",
    "kappa": "kappa",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the questions."""

    items: int = 10
    """Questions about latents of each SAE."""
    controls: int = 4
    """Questions of each SAE whose excerpts are all of different latents."""
    strongest: int = 12
    """Contexts that a latent's excerpts come from: those in which it fires most."""
    n_contexts: int = 512
    """Held-out contexts that excerpts come from."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    seed: int = 0
    """Seed of latents, excerpts and their order."""


METRICS = tuple(
    Metric(
        category,
        name,
        f"{title}{whose}",
        "higher" if name in SHORT else "neither",
        short=f"{SHORT[name]}{whose}" if name in SHORT else "",
        column=f"{prefix}{name}",
    )
    for category, prefix, whose in (("people", "", ""), ("models", "model_", ", language models"))
    for name, title in TITLES.items()
)


class HumanStudy(Evaluator[Settings]):
    """Accuracy of people in the intruder task. The results need answers, so there is no `evaluate`."""

    settings_class = Settings
    metrics = METRICS
    made_by = "python -m eval_runners human-study make, and score"


if __name__ == "__main__":
    import sys

    from eval_runners.commands.human_study import main
    from sae_variants.common.console import run_command

    run_command(lambda: main(sys.argv[1:]))
