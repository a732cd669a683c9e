"""python -m eval_runners export saebench | neuronpedia FOLDER: results and latents as files that others read.

saebench FOLDER                    results, as SAEBench's own graphs and scripts read them
neuronpedia FOLDER --sae NAME      the dashboards of an SAE's latents, as Neuronpedia imports them

Each format's --help has its options.
"""

from __future__ import annotations

from eval_runners.commands import run_subcommand

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
    return run_subcommand(__name__, __doc__, FORMATS, argv)
