"""Command-line options that every scoring command shares, and their parsing."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from sae_variants.cli.options import (
    Parser,
    add_grid_options,
    add_target_options,
    parse_extra_options,
    parse_seeds,
    split_unknown_options,
)

TRAIN_PREFIX = "train."
"""Leads the options that set config fields of a variant that must be trained first."""

DEFAULT_OUTPUT = "results/runs"
"""Root of the results, unless another is given."""


def add_sae_option(parser: Parser, help_text: str) -> None:
    """Add `--sae`, which may be repeated."""
    parser.add_argument("--sae", action="append", required=True, metavar="NAME", dest="saes", help=help_text)


def add_scoring_options(parser: Parser, seeds: str = "0") -> None:
    """Add the options of every command that scores SAEs, with the default of `--seeds`."""
    add_sae_option(
        parser,
        "A variant, stock:ARCHITECTURE, random, a folder, user/repo@revision:path on the Hub, or RELEASE:SAE_ID of"
        " SAELens' registry (RELEASE alone lists its ids); may be repeated.",
    )
    parser.add_argument(
        "--seeds",
        type=parse_seeds,
        default=parse_seeds(seeds),
        metavar="0,1,2",
        help="Seeds of variants that are trained here; several give mean ± half of its 95 %% interval"
        f" (default: {seeds}).",
    )
    add_output_option(parser)
    parser.add_argument("--force", action="store_true", help="Evaluate again, although there is a result.")
    add_grid_options(parser)
    add_target_options(parser)
    parser.epilog = (
        "A variant that must be trained first takes --train.FIELD VALUE, e.g. --train.k 16 --train.d-sae 4096."
    )


def add_output_option(parser: Parser) -> None:
    """Add `--output`, the root of result files."""
    parser.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="FOLDER", help="Root of the results (default: %(default)s)."
    )


def parse_with_overrides(parser: Parser, argv: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """Parse a command line that may hold `--train.FIELD VALUE`.

    Returns:
        The options that the parser knows; field -> value of the config fields to train with.

    Raises:
        UsageError: an unknown or malformed option.
    """
    known, unknown = split_unknown_options(parser, argv)
    return parser.parse_args(known), parse_extra_options(unknown, prefix=TRAIN_PREFIX)
