"""python -m eval_runners human-study make | judge | score: do people tell where a latent fires?

    make --sae A --sae B ... --output study.html     the questions as one page that opens from disk, and study.key.json
    judge study.key.json --url URL --model NAME      the same questions to a language model, off unless you ask for it
    score answers.json ...                           accuracy of each SAE, and its results for the leaderboard

A rater opens the page, answers by clicks or keys, and saves a file of answers; the page says nothing of SAEs, which
stands in the key. An untrained SAE, `random`, is always among them, and items whose excerpts have no latent in common.
"""

from __future__ import annotations

from importlib import import_module

from sae_variants.cli.options import Parser

STEPS = {"make": "the page", "judge": "a language model's answers", "score": "the results"}
"""Each is the module of its name in this folder."""


def main(argv: list[str]) -> int:
    if argv and argv[0] in STEPS:
        return import_module(f"{__name__}.{argv[0]}").main(argv[1:])
    parser = Parser(prog="python -m eval_runners human-study", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    for name, line in STEPS.items():
        steps.add_parser(name, help=line)
    parser.parse_args(argv)
    return 0
