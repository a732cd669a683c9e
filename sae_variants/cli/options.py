"""Dataclass -> command line: each field is an option, the docstring under it is the help.

Options that were not given are absent from the result, so that a recipe's defaults can stand behind them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from sae_variants.common.errors import UsageError
from sae_variants.common.values import parse_value
from sae_variants.language_model.target import DEFAULT_TARGET, Target, choose_target


class Parser(argparse.ArgumentParser):
    """Prints one line on bad input instead of the whole usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def split_unknown_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words the parser knows, options that it does not, each with its value), wherever they stand."""
    known = set(parser._option_string_actions)
    ours, extra, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word.partition("=")[0] in known:
            ours.append(word)
            continue
        extra.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            extra.append(words.pop(0))
    return ours, extra


def parse_extra_options(extra: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """`--name value` and `--name=value` pairs that the parser did not know, as a dict of underscored names."""
    options: dict[str, Any] = {}
    words = list(extra)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--" + prefix) or len(name) == len("--" + prefix):
            raise UsageError(f"unknown option or argument {word!r}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UsageError(f"option {name} needs a value")
            value = words.pop(0)
        options[name.removeprefix("--" + prefix).replace("-", "_")] = parse_value(value)
    return options


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=A,B,...",
        help="train one SAE for every value of a field; may be repeated, every combination is a cell",
    )  # fmt: skip
    parser.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=A,FIELD=B",
        help="train also one SAE that differs in these fields alone, as for an ablation; may be repeated",
    )  # fmt: skip


def add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument("--target", default=DEFAULT_TARGET, help="language model, hook and text (default: %(default)s)")
    group.add_argument("--model", metavar="FOLDER", help="instead of --target: a local Hugging Face causal LM")
    group.add_argument("--hook-name", metavar="HOOK", help="with --model: e.g. blocks.3.hook_resid_post")
    group.add_argument("--dataset", metavar="PATH", help="with --model: a .txt, .jsonl or .parquet file, or a folder")
    group.add_argument(
        "--trained", metavar="FOLDER", help="where trained SAEs lie (default: ~/.cache/sae_variants/trained)"
    )
    group.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")


def target_from(args: argparse.Namespace) -> Target:
    return choose_target(args.target, args.model, args.hook_name, args.dataset)


def targets_from(args: argparse.Namespace) -> list[Target]:
    """Those of a command that takes several, parted by commas."""
    names = dict.fromkeys(name.strip() for name in args.target.split(","))
    return [choose_target(name, args.model, args.hook_name, args.dataset) for name in names]


def device_from(args: argparse.Namespace) -> str:
    """The device asked for, or the best there is. UsageError if it is not to be had."""
    import torch

    if args.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {args.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return args.device


def parse_seeds(text: str) -> list[int]:
    """`0` or `0,1,2`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 0,1,2") from error
    if min(found) < 0:
        raise argparse.ArgumentTypeError("seeds must not be negative")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return found


def parse_whole(text: str) -> int:
    """A number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def parse_positive(text: str) -> int:
    if parse_whole(text) < 1:
        raise argparse.ArgumentTypeError("there must be at least 1")
    return int(text)
