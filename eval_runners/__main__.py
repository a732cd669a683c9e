"""python -m eval_runners list"""

from __future__ import annotations

import sys
from pathlib import Path

from eval_runners import _contract
from sae_variants import _cli, _register
from sae_variants.__main__ import main as sae_variants_main
from sae_variants._errors import run_command


def main(argv: list[str]) -> int:
    parser = _cli.Parser(prog="python -m eval_runners", description="Evaluations of sparse autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="evaluations, variants and targets")
    parser.parse_args(argv)
    print("evaluations")
    for name in _contract.names():
        print(f"  {name:28} {_register.first_line(Path(__file__).parent / f'{name}.py')}")
    return sae_variants_main(["list"])


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
