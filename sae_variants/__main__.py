"""python -m sae_variants train NAME... | convert SOURCE FOLDER | options NAME | target check FILE | list | sae_lens."""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields

from sae_variants.cli.fields import field_docs, to_option
from sae_variants.cli.options import Parser
from sae_variants.commands import convert, target, train
from sae_variants.common.console import run_command
from sae_variants.language_model.target import load_target, target_names
from sae_variants.registry.variants import find_variant, variant_summaries
from sae_variants.sharded.lost import refused_once
from sae_variants.training.plan import SETTING_NAMES


@refused_once()
def main(argv: list[str]) -> int:
    """Run the command that the first word names."""
    run_by_name = {"train": train.main, "convert": convert.main, "target": target.main, "sae_lens": _run_sae_lens}
    if argv and argv[0] in run_by_name:
        return run_by_name[argv[0]](argv[1:])
    parser = Parser(prog="python -m sae_variants", description="Train sparse autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="Train SAEs on a target; several names share one stream of activations.")
    commands.add_parser("convert", help="Save an SAE of another library, or of the Hub, in SAELens' layout.")
    commands.add_parser("sae_lens", help="Run SAELens' own training command, which then knows our architectures.")
    options = commands.add_parser("options", help="Print the config fields of a variant.")
    options.add_argument("name", help="Variant, such as temporal or stock:batchtopk.")
    commands.add_parser("target", help="Check a target file: model, hook and text.")
    commands.add_parser("list", help="List the variants and targets.")
    args = parser.parse_args(argv)
    if args.command == "options":
        _print_options(args.name)
    else:
        _print_names()
    return 0


def _run_sae_lens(argv: list[str]) -> int:
    from sae_lens.llm_sae_training_runner import _run_cli

    from sae_variants.registry.variants import import_variants

    import_variants()
    _run_cli(argv)
    return 0


def _print_options(name: str) -> None:
    variant = find_variant(name)
    docs = field_docs(variant.config_class)
    for f in fields(variant.config_class):
        if f.name in variant.field_names and f.name not in SETTING_NAMES:
            kind = f.type.__name__ if isinstance(f.type, type) else f.type
            default = f.default if f.default_factory is MISSING else f.default_factory()
            print(f"{to_option(f.name)} {kind} (default: {default})\n    {docs.get(f.name, 'See SAELens.')}")
    print("A target's recipe may set other defaults; `train --help` lists the training settings.")


def _print_names() -> None:
    print("variants")
    for name, summary in variant_summaries().items():
        print(f"  {name:28} {summary}")
    print("  stock:ARCHITECTURE           SAELens' own, such as stock:batchtopk, stock:topk and stock:standard")
    print("targets")
    for name in target_names():
        print(f"  {name:28} {load_target(name).title}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
