"""`status` and `cancel`: the launches below a folder, their jobs and what each printed last, and what has failed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.worker import failures_in
from sae_variants.launch.jobs import FOLDER, JOBS, Job, cancel_jobs, jobs_of

CONTROLS = ("status", "cancel")


def control(words: Sequence[str], default_root: str) -> int:
    """Show or end the jobs of all launches below a folder.

    Args:
        words: `status` or `cancel`, and options.
        default_root: The folder where none is given.

    Returns:
        0, or 1 if a job that was told to end goes on.

    Raises:
        UsageError: There are no launches.
    """
    action, *options = words
    parser = Parser(prog=action, description="The jobs of commands with --launch, and what each printed last.")
    parser.add_argument("--output", default=default_root, metavar="FOLDER", help="Root of results, or of trained SAEs.")
    root = Path(parser.parse_args(options).output)
    launches = {file.parent: jobs_of(file.parent) for file in sorted(root.glob(f"{FOLDER}/*/{JOBS}"))}
    if not launches:
        raise UsageError(f"nothing was launched below {root}: give the --output, or the --trained, of the command")
    told: list[Job] = []
    if action == "cancel":
        told = [job for jobs in launches.values() for job in jobs if job.is_running]
    left = cancel_jobs(told)
    for folder, jobs in launches.items():
        worker = json.loads((folder / JOBS).read_text())["worker"]
        print(shlex.join(["python", "-m", worker["module"], *worker["argv"]]))
        for job in jobs:
            state = "is cancelled" if job in told and job not in left else job.state
            told_to_end = "was told to end and " if job in left else ""
            print(f"  {job.cluster} {job.number} {told_to_end}{state}: {job.last_line(folder)}".rstrip(": "))
        for path, reason in failures_in(folder):
            print(f"  failed: {path}: {reason}")
    return 1 if left else 0
