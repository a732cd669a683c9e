"""python -m eval_runners list | suite | leaderboard | report | case-study | human-study | publish"""

from __future__ import annotations

import sys
from importlib import import_module

from eval_runners.commands import evaluate as eval_command
from eval_runners.contract.registry import evaluator_modules, evaluator_names
from sae_variants.__main__ import main as sae_variants_main
from sae_variants.cli.options import Parser
from sae_variants.common.console import run_command
from sae_variants.registry.plugins import read_summary

COMMANDS = {
    "list": "evaluations, variants and targets",
    "suite": "several SAEs, seeds and evaluations in one go",
    "leaderboard": "results of ours and of others, ranked where they may be",
    "report": "the leaderboard as one HTML page",
    "case-study": "single latents of an SAE as one HTML page",
    "human-study": "do people tell where a latent fires? the questions as one HTML page, and their scoring",
    "publish": "an SAE, its results and a card, on the Hugging Face Hub",
}
"""Each but `list` is the module of its name in `commands`."""


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS and argv[0] != "list":
        return import_module(f"eval_runners.commands.{argv[0].replace('-', '_')}").main(argv[1:])
    if argv and argv[0] in evaluator_names():
        return eval_command.main(argv[0], argv[1:])
    parser = Parser(
        prog="python -m eval_runners",
        description="Evaluations of sparse autoencoders.",
        epilog="`python -m eval_runners EVALUATION --sae NAME` runs one, as `python -m eval_runners.core` does.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=line)
    for name in evaluator_names():
        commands.add_parser(name)
    parser.parse_args(argv)
    print("evaluations")
    for name, module in evaluator_modules().items():
        print(f"  {name:28} {read_summary(module)}")
    return sae_variants_main(["list"])


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
