"""Command-line parsers: one-line errors, options that a parser does not know, and options that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_folder_writable
from sae_variants.common.values import parse_value
from sae_variants.language_model.target import DEFAULT_TARGET, Target, TextOptions, choose_target


class Parser(argparse.ArgumentParser):
    """Parser that reports bad input in one line instead of the whole usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with the message."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def group_arguments(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield each option with its value, as `[--name, value]`, and every other argument alone.

    An option of the form `--name=value`, and one that no value follows, is alone too.
    """
    remaining = list(arguments)
    while remaining:
        group = [remaining.pop(0)]
        is_open = group[0].startswith("--") and "=" not in group[0]
        if is_open and remaining and not remaining[0].startswith("--"):
            group.append(remaining.pop(0))
        yield group


def split_unknown_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the arguments that the parser knows from the options, with their values, that it does not."""
    known_options = set(parser._option_string_actions)
    known: list[str] = []
    unknown: list[str] = []
    for group in group_arguments(argv):
        is_known = not group[0].startswith("--") or group[0].partition("=")[0] in known_options
        (known if is_known else unknown).extend(group)
    return known, unknown


def parse_extra_options(unknown: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Return the values, by underscored name, of options that a parser does not know.

    Args:
        unknown: Arguments `--name value` or `--name=value`.
        prefix: What every name begins with, such as `train.`; it is removed.

    Raises:
        UsageError: An option has another prefix or no value, or its name is none of a field.
    """
    options: dict[str, Any] = {}
    for argument, *values in group_arguments(unknown):
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--" + prefix)
        if name in ("", option):
            raise UsageError(f"unknown option or argument {argument!r}")
        if not equals and not values:
            raise UsageError(f"option {option} needs a value")
        if "." in name:
            raise UsageError(f"unknown option {option}: write a config field as --{prefix}{name.rpartition('.')[2]}")
        options[name.replace("-", "_")] = parse_value(values[0] if values else value)
    return options


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """Add --grid and --vary."""
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=A,B,...",
        help="Train one SAE for every value of a field, where [A,B] is a list. May be repeated: for every combination.",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=A,FIELD=B",
        help="Also train one SAE that differs in these fields alone, as for an ablation. May be repeated.",
    )


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add --target, --model and the other options that choose a target, the root of trained SAEs and the device."""
    group = parser.add_argument_group("target")
    group.add_argument(
        "--target",
        default=DEFAULT_TARGET,
        help="Language model, hook and text: a name, or a target file FILE.toml (default: %(default)s).",
    )
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="Causal LM, instead of --target: a Hugging Face folder, or ORG/NAME or ORG/NAME@REVISION on the Hub.",
    )
    group.add_argument(
        "--hook-name",
        metavar="HOOK",
        help="Hook of --model with a vector per token, such as blocks.3.hook_resid_post or blocks.3.attn.hook_z.",
    )
    group.add_argument(
        "--dataset",
        metavar="TEXT",
        help="Text for --model: a file or folder of .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow, or a "
        "dataset on the Hub, written ORG/NAME, ORG/NAME:CONFIG or ORG/NAME@REVISION.",
    )
    group.add_argument(
        "--train-dataset",
        metavar="TEXT",
        help="Text to train on, written as --dataset is. Without it, one in ten documents of --dataset is held out.",
    )
    group.add_argument(
        "--dataset-split", metavar="NAME", help="Split of a dataset on the Hub or saved by datasets (default: train)."
    )
    group.add_argument("--text-column", metavar="NAME", help="Column with the documents (default: text).")
    group.add_argument(
        "--trained", metavar="FOLDER", help="Root of trained SAEs (default: ~/.cache/sae_variants/trained)."
    )
    group.add_argument(
        "--activations",
        metavar="FOLDER",
        help="Keep the activations of the language model here, and read them instead of computing them again.",
    )
    group.add_argument("--device", default=None, help="Device, such as cpu or cuda (default: cuda if available).")


def target_from(args: argparse.Namespace) -> Target:
    """Return the target that the options choose."""
    return _choose(args.target, args)


def targets_from(args: argparse.Namespace) -> list[Target]:
    """Return the targets of a command that accepts several names, separated by commas."""
    return [_choose(name, args) for name in dict.fromkeys(name.strip() for name in args.target.split(","))]


def _choose(target: str, args: argparse.Namespace) -> Target:
    text = TextOptions(args.train_dataset, args.dataset_split, args.text_column)
    chosen = choose_target(target, args.model, args.hook_name, args.dataset, text)
    if args.activations is None:
        return chosen
    if chosen.synthetic:
        raise UsageError(f"--activations keeps those of language models, and {chosen.name} is synthetic: leave it out")
    folder = check_folder_writable(Path(args.activations), "--activations", "keep activations in")
    return replace(chosen, activations=folder)


def device_from(args: argparse.Namespace) -> str:
    """Return the requested device, or the best available one; raise a UsageError if it cannot be used."""
    import torch

    if args.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {args.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return args.device


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of `0` or `0,1,2`."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 0,1,2") from error
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError("seeds must not be negative")
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def parse_whole(text: str) -> int:
    """Return a whole number of at least 0."""
    return _parse_from(0, text)


def parse_positive(text: str) -> int:
    """Return a whole number of at least 1."""
    return _parse_from(1, text)


def _parse_from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def parse_number(text: str) -> float:
    """Return a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
