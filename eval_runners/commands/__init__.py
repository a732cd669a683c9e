"""Commands of `python -m eval_runners`, a module or a folder each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from sae_variants.cli.options import Parser


def run_subcommand(package: str, description: str | None, subcommands: Mapping[str, str], argv: Sequence[str]) -> int:
    """Run the part of a command that the first argument names, or print what there is.

    Args:
        package: name of the command's folder, whose modules are the parts.
        description: its help.
        subcommands: module -> its help.
        argv: the arguments.

    Returns:
        The exit code of the part.

    Raises:
        UsageError: an unknown part.
    """
    if argv and argv[0] in subcommands:
        return import_module(f"{package}.{argv[0]}").main(list(argv[1:]))
    command = package.rpartition(".")[2].replace("_", "-")
    parser = Parser(prog=f"python -m eval_runners {command}", description=description)
    parts = parser.add_subparsers(metavar="{" + ",".join(subcommands) + "}", required=True)
    for name, text in subcommands.items():
        parts.add_parser(name, help=text)
    parser.parse_args(argv)
    return 0
