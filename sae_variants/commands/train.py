"""Command `train`: train SAEs by name on a target, with one stream of activations for all of them."""

from __future__ import annotations

import argparse
import sys

from sae_variants.cli.fields import add_fields, given_fields
from sae_variants.cli.options import (
    Parser,
    add_grid_options,
    add_target_options,
    device_from,
    parse_extra_options,
    parse_number,
    parse_positive,
    parse_seeds,
    split_unknown_options,
    target_from,
)
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.launch.options import add_launch_options, launch_of, without_launch_options
from sae_variants.launch.share import Cell, share_work
from sae_variants.sharded.ranks import check_shards, is_first_process, is_torchrun
from sae_variants.training.grid import check_sweep, make_plans, parse_grid
from sae_variants.training.log import LOG, LogSettings
from sae_variants.training.plan import TrainSettings, applicable_overrides
from sae_variants.training.tracking import LIBRARIES
from sae_variants.training.train import train_plans


def make_parser() -> Parser:
    """Return the parser of `python -m sae_variants train`."""
    parser = Parser(
        prog="python -m sae_variants train",
        description="Train SAEs. Any field of their configs can be set as --field value; see `options NAME`.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="Variants, such as temporal or stock:batchtopk.")
    parser.add_argument(
        "--l0", type=parse_number, help="Latents that fire per token: k, or else the coefficient that the target lists."
    )
    parser.add_argument("--seeds", type=parse_seeds, default=None, help="Several seeds, such as 0,1,2.")
    parser.add_argument("--output", metavar="FOLDER", help="Root of trained SAEs; equivalent to --trained.")
    parser.add_argument("--force", action="store_true", help="Train again what is trained already.")
    parser.add_argument(
        "--shards",
        type=parse_positive,
        metavar="S",
        help="Train one SAE in the processes of torchrun, its latents in S shards (default: one a process).",
    )
    parser.add_argument(
        "--log",
        nargs="?",
        const="file",
        choices=("file", *LIBRARIES),
        help="Write one JSON line a report beside the weights, and send it to this library if one is given.",
    )
    parser.add_argument(
        "--log-heldout",
        type=parse_positive,
        metavar="N",
        help="Tokens between measurements of --log on held-out text (default: a tenth of the training).",
    )
    add_grid_options(parser)
    add_target_options(parser)
    add_launch_options(parser)
    add_fields(parser, TrainSettings, "training (a target's recipe takes precedence over these defaults)")
    return parser


def main(argv: list[str]) -> int:
    """Train every requested SAE that is not trained yet, and print where each is."""
    parser = make_parser()
    known, unknown = split_unknown_options(parser, argv)
    args = parser.parse_args(known)
    hide_host_warnings()
    launch = launch_of(args)
    overrides = {**given_fields(args, TrainSettings), **parse_extra_options(unknown)}
    _refuse_synonyms(args, overrides)
    log = log_settings(args.log, args.log_heldout)
    in_shards = bool(args.shards) or is_torchrun()
    if in_shards and (launch or log):
        raise UsageError(f"{'--launch' if launch else '--log'} does not go with torchrun and --shards: leave it out")
    shards = check_shards(args.shards) if in_shards else 0
    seeds = args.seeds if args.seeds is not None else [overrides.pop("seed", 0)]
    grid_points, target = parse_grid(args.grid, args.vary), target_from(args)
    check_sweep(args.names, target, overrides, grid_points, seeds)
    device = device_from(args)
    plans = make_plans(args.names, target, overrides, grid_points, seeds, args.output or args.trained, args.l0)
    for name in args.names if is_first_process() else ():
        for field in overrides.keys() - applicable_overrides(name, overrides).keys():
            print(f"{name} has no {field}; it is trained without", file=sys.stderr)
    if launch:

        def cells() -> list[Cell]:
            return [Cell(plan.title, plan.folder, plan.is_trained) for plan in plans]

        if not share_work(launch, "sae_variants", ["train", *without_launch_options(argv)], plans[0].root, cells):
            return 0
    trained_before = {plan.folder for plan in plans if plan.is_trained and not args.force}
    if in_shards:
        from sae_variants.sharded.train import check_plans, train_sharded

        check_plans(plans, shards)
        train_sharded(plans, shards, device, args.force)
        if not is_first_process():
            return 0
    else:
        train_plans(plans, device, args.force, log=log)
    for plan in plans:
        lacks_log = log is not None and not (plan.folder / LOG).exists()
        how = " without a log: --force trains it again with one" if lacks_log else ""
        was = f" (was trained{how})" if plan.folder in trained_before else ""
        print(f"{plan.label} seed {plan.settings.seed}: {plan.folder}{was}")
    return 0


def log_settings(destination: str | None, heldout_every: int | None) -> LogSettings | None:
    """Return what --log and --log-heldout choose; None without --log."""
    if destination is None:
        if heldout_every is not None:
            raise UsageError("--log-heldout belongs to --log: give --log too")
        return None
    return LogSettings(destination.removeprefix("file"), heldout_every or 0)


def _refuse_synonyms(args: argparse.Namespace, overrides: dict[str, object]) -> None:
    given_twice = {
        "--seed and --seeds": args.seeds is not None and "seed" in overrides,
        "--output and --trained": args.output and args.trained,
    }
    for options, is_given in given_twice.items():
        if is_given:
            raise UsageError(f"{options} are two spellings of the same option: give only one of them")
