"""Run a command of this package: `python -m eval_runners COMMAND`, or an evaluator: `python -m eval_runners NAME`."""

from __future__ import annotations

import sys
from importlib import import_module

from eval_runners.commands import evaluate
from eval_runners.contract.registry import GROUPS, evaluator_modules, evaluator_names
from sae_variants.__main__ import main as variants_main
from sae_variants.cli.options import Parser
from sae_variants.common.console import run_command
from sae_variants.registry.plugins import read_summary

LIST = "list"
COMMANDS = {
    LIST: "List evaluations, variants and targets.",
    "suite": "Score several SAEs with several seeds and evaluations at once.",
    "reliability": "Measure how much metrics vary between seeds, and which differences are reliable.",
    "leaderboard": "Rank results of ours and of others, where they may be ranked.",
    "export": "Write results for SAEBench's graphs, or an SAE's latents for Neuronpedia.",
    "report": "Write the leaderboard as one HTML page.",
    "serve": "Show the report and other pages in a browser, and reload it when results arrive.",
    "case-study": "Show single latents of an SAE on one HTML page.",
    "human-study": "Ask people, or a language model, where a latent fires, and score the answers.",
    "publish": "Publish an SAE, its results and a model card on the Hugging Face Hub.",
}
"""Each but `list` is the module of its name in `commands`."""


def main(argv: list[str]) -> int:
    """Run the command or the evaluator that the first argument names.

    Returns:
        The exit code.

    Raises:
        UsageError: an unknown command, or one that cannot do what it is asked.
    """
    if argv and argv[0] in COMMANDS and argv[0] != LIST:
        return import_module(f"eval_runners.commands.{argv[0].replace('-', '_')}").main(argv[1:])
    if argv and argv[0] in GROUPS:
        return import_module("eval_runners.commands.suite").main(["--evals", *argv])
    if argv and argv[0] in evaluator_names():
        return evaluate.main(argv[0], argv[1:])
    parser = Parser(
        prog="python -m eval_runners",
        description="Evaluations of sparse autoencoders.",
        epilog="`python -m eval_runners EVALUATION --sae NAME` runs one, as `python -m eval_runners.core` does.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    for name in evaluator_names():
        commands.add_parser(name)
    parser.parse_args(argv)
    print("evaluations")
    for name, module in evaluator_modules().items():
        print(f"  {name:28} {read_summary(module)}")
    print("groups of evaluations, for `suite --evals`")
    for name, members in GROUPS.items():
        print(f"  {name:28} {', '.join(members)}")
    return variants_main([LIST])


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
