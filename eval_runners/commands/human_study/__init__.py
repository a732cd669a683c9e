"""python -m eval_runners human-study make | judge | score: can people tell where a latent fires?

    make --sae A --sae B ... --output study.html     write the questions as one page, and study.key.json
    judge study.key.json --url URL --model NAME      put the same questions to a language model (optional)
    score answers.json ...                           score each SAE, and write its results for the leaderboard

A rater opens the page, answers by clicks or keys, and saves a file of answers. The page does not name the SAEs; the key
does. An untrained SAE, `random`, is always included, and so are controls, whose excerpts have no latent in common.
"""

from __future__ import annotations

from importlib import import_module

from sae_variants.cli.options import Parser

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
    if argv and argv[0] in STEPS:
        return import_module(f"{__name__}.{argv[0]}").main(argv[1:])
    parser = Parser(prog="python -m eval_runners human-study", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    for name, text in STEPS.items():
        steps.add_parser(name, help=text)
    parser.parse_args(argv)
    return 0
