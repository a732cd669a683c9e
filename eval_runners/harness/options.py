"""Command-line options that every scoring command shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_variants.cli.options import (
    add_grid_options,
    add_target_options,
    parse_seeds,
)

if TYPE_CHECKING:
    pass


TRAIN_PREFIX = "train."


def add_scoring_options(parser: Any) -> None:
    """The options of every command that scores SAEs."""
    parser.add_argument(
        "--sae", action="append", required=True, metavar="NAME", dest="saes",
        help="a variant, stock:ARCHITECTURE, random, a folder, or user/repo:sae_id on the Hub; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=parse_seeds, default=[0], metavar="0,1,2",
        help="seeds of variants that are trained here; several give mean ± standard error (default: 0)",
    )  # fmt: skip
    add_output_option(parser)
    parser.add_argument("--force", action="store_true", help="evaluate again what has a result already")
    add_grid_options(parser)
    add_target_options(parser)
    parser.epilog = (
        "A variant that must be trained first takes --train.FIELD VALUE, e.g. --train.k 16 --train.d-sae 4096."
    )


def add_output_option(parser: Any) -> None:
    parser.add_argument(
        "--output", default="results/runs", metavar="FOLDER", help="root of results (default: %(default)s)"
    )
