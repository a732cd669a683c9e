"""python -m eval_runners human-study make | judge | score: can people tell where a latent fires?

    make --sae A --sae B ... --output study.html     write the questions as one page, and study.key.json
    judge study.key.json --url URL --model NAME      put the same questions to a language model (optional)
    score answers.json ...                           score each SAE, and write its results for the leaderboard

A rater opens the page, answers by clicks or keys, and saves a file of answers. The page does not name the SAEs; the key
does. An untrained SAE, `random`, is always included, and so are controls, whose excerpts have no latent in common.
"""

from __future__ import annotations

from eval_runners.commands import run_subcommand

STEPS = {
    "make": "Write the page of questions.",
    "judge": "Have a language model answer.",
    "score": "Score the answers.",
}
"""Name of a module of this folder -> its help."""


def main(argv: list[str]) -> int:
    """Run one step.

    Returns:
        The step's exit code.
    """
    return run_subcommand(__name__, __doc__, STEPS, argv)
