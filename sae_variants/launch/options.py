"""Options of commands whose work several processes, or SLURM jobs, can share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_variants.cli.fields import to_option
from sae_variants.cli.options import Parser, parse_positive
from sae_variants.common.errors import UsageError

SLURM = {
    "partition": "Partition.",
    "gres": "Generic resources of a job, such as gpu:1.",
    "time": "Minutes after which a job ends; it is requeued and goes on (default: 1440).",
    "account": "Account.",
    "qos": "Quality of service.",
    "mem": "Memory of a job, such as 32GB.",
    "cpus_per_task": "CPUs of a job.",
}
"""Options of sbatch that can be given, with their help."""
MINUTES = 24 * 60


@dataclass(frozen=True)
class Launch:
    """How the workers of a command are started."""

    cluster: str
    """`local` or `slurm`."""
    jobs: int
    """Workers."""
    detach: bool
    """Whether the command returns once they are started."""
    slurm: dict[str, Any]
    """Options of sbatch by name."""


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    group = parser.add_argument_group("several processes or SLURM jobs (needs submitit, the extra `cluster`)")
    group.add_argument(
        "--launch", choices=("local", "slurm"), help="Let processes here, or SLURM jobs, share the work."
    )
    group.add_argument("--jobs", type=parse_positive, metavar="N", help="Processes or jobs (default: 2).")
    group.add_argument("--detach", action="store_true", help="Return once they are started.")
    for name, text in SLURM.items():
        group.add_argument(_option(name), metavar=name.upper().replace("_", "-"), help=text)


def launch_of(args: argparse.Namespace) -> Launch | None:
    """Return how the workers are started; None without --launch.

    Raises:
        UsageError: An option needs another one.
    """
    slurm = {name: value for name in SLURM if (value := getattr(args, f"slurm_{name}")) is not None}
    if args.launch is None:
        given = [*map(_option, slurm)] + ["--jobs"] * (args.jobs is not None) + ["--detach"] * args.detach
        if given:
            raise UsageError(f"{given[0]} belongs to --launch: give --launch local or --launch slurm too")
        return None
    if args.force:
        raise UsageError("--force and --launch: workers cannot tell new from old; remove what shall be made again")
    if args.launch == "local" and slurm:
        raise UsageError(f"{_option(next(iter(slurm)))} belongs to --launch slurm")
    for name in ("time", "cpus_per_task"):
        if name in slurm:
            slurm[name] = _whole(_option(name), slurm[name])
    return Launch(args.launch, args.jobs or 2, args.detach, slurm)


def without_launch_options(argv: Sequence[str]) -> list[str]:
    """Return a command line without these options, which is that of a worker."""
    parser = Parser(add_help=False)
    add_launch_options(parser)
    return parser.parse_known_args(list(argv))[1]


def _option(name: str) -> str:
    return to_option(f"slurm_{name}")


def _whole(option: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{option} must be a whole number above 0, not {text!r}")
    return int(text)
