"""python -m eval_runners export saebench | neuronpedia FOLDER: results and latents as files that others read.

saebench FOLDER                    results, as SAEBench's own graphs and scripts read them
neuronpedia FOLDER --sae NAME      the dashboards of an SAE's latents, as Neuronpedia imports them

Each format's --help has its options.
"""

from __future__ import annotations

from importlib import import_module

from sae_variants.cli.options import Parser

FORMATS = {
    "saebench": "Write results as files that SAEBench's own graphs read.",
    "neuronpedia": "Write an SAE's latents as files that Neuronpedia imports.",
}
"""Name of a module of this folder -> its help."""


def main(argv: list[str]) -> int:
    """Export in one format.

    Returns:
        The exit code of that format's command.
    """
    if argv and argv[0] in FORMATS:
        return import_module(f"{__name__}.{argv[0]}").main(argv[1:])
    parser = Parser(prog="python -m eval_runners export", description=__doc__)
    formats = parser.add_subparsers(dest="format", required=True)
    for name, text in FORMATS.items():
        formats.add_parser(name, help=text)
    parser.parse_args(argv)
    return 0
