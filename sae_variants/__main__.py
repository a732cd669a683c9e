"""python -m sae_variants train NAME... | options NAME | list"""

from __future__ import annotations

import sys
from dataclasses import fields

from sae_variants.cli.fields import add_fields, field_docs, given_fields, to_option
from sae_variants.cli.options import (
    Parser,
    add_grid_options,
    add_target_options,
    device_from,
    parse_extra_options,
    parse_seeds,
    split_unknown_options,
    target_from,
)
from sae_variants.common.console import hide_host_warnings, run_command
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target, target_names
from sae_variants.registry.variants import find_variant, variant_summaries
from sae_variants.training.grid import make_plans, parse_grid
from sae_variants.training.plan import SETTING_NAMES, TrainSettings, applicable_overrides
from sae_variants.training.train import train_plans


def main(argv: list[str]) -> int:
    parser = Parser(prog="python -m sae_variants", description="Train sparse autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train SAEs on a target; several names share one stream of activations",
        description="Train SAEs. Any field of their configs can be set as --field value; see `options NAME`.",
    )
    train.add_argument("names", nargs="+", metavar="NAME", help="temporal, stock:batchtopk, ...; see `list`")
    train.add_argument("--l0", type=float, help="latents per token; another spelling of --k")
    train.add_argument("--seeds", type=parse_seeds, default=None, help="several seeds, e.g. 0,1,2")
    train.add_argument("--output", metavar="FOLDER", help="another spelling of --trained")
    train.add_argument("--force", action="store_true", help="train again what is trained already")
    add_grid_options(train)
    add_target_options(train)
    add_fields(train, TrainSettings, "training (defaults are the target's where it has its own)")
    options = commands.add_parser("options", help="the fields of a variant's config")
    options.add_argument("name")
    commands.add_parser("list", help="variants and targets")
    words, extra = split_unknown_options(train, argv) if argv[:1] == ["train"] else (argv, [])
    args = parser.parse_args(words)
    return {"train": _train_command, "options": _options_command, "list": _list_command}[args.command](args, extra)


def _train_command(args, extra: list[str]) -> int:
    hide_host_warnings()
    overrides = {**given_fields(args, TrainSettings), **parse_extra_options(extra)}
    if args.l0 is not None:
        if "k" in overrides:
            raise UsageError("--l0 and --k are two spellings of one thing: give one of them")
        overrides["k"] = args.l0
    if args.seeds is not None and "seed" in overrides:
        raise UsageError("--seed and --seeds are two spellings of one thing: give one of them")
    if args.output and args.trained:
        raise UsageError("--output and --trained are two spellings of one thing: give one of them")
    target, device = target_from(args), device_from(args)
    seeds = args.seeds if args.seeds is not None else [overrides.pop("seed", 0)]
    for name in args.names:
        for field in overrides.keys() - applicable_overrides(name, overrides).keys():
            print(f"{name} has no {field}; it is trained without", file=sys.stderr)
    cells = parse_grid(args.grid, args.vary)
    found = make_plans(args.names, target, overrides, cells, seeds, args.output or args.trained)
    before = {made.folder for made in found if made.is_trained and not args.force}
    train_plans(found, device, args.force)
    for made in found:
        was = " (was trained)" if made.folder in before else ""
        print(f"{made.label} seed {made.settings.seed}: {made.folder}{was}")
    return 0


def _options_command(args, extra: list[str]) -> int:
    variant = find_variant(args.name)
    docs = field_docs(variant.config_class)
    for f in fields(variant.config_class):
        if f.name in variant.field_names and f.name not in SETTING_NAMES:
            kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
            print(f"{to_option(f.name)} {kind} (default: {f.default})\n    {docs.get(f.name, 'see SAELens')}")
    print("A target's recipe may set other defaults; `train --help` lists the training settings.")
    return 0


def _list_command(args, extra: list[str]) -> int:
    print("variants")
    for name, line in variant_summaries().items():
        print(f"  {name:28} {line}")
    print("  stock:ARCHITECTURE           SAELens' own, e.g. stock:batchtopk stock:topk stock:standard")
    print("targets")
    for name in target_names():
        print(f"  {name:28} {load_target(name).title}")
    return 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
