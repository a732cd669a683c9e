"""`status` and `cancel`: the launches below a folder, their jobs and what each printed last, and what has failed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.worker import failures_in
from sae_variants.launch.jobs import FOLDER, JOBS, jobs_of

CONTROLS = ("status", "cancel")


def control(words: Sequence[str], default_root: str) -> int:
    """Show or end the jobs of all launches below a folder.

    Args:
        words: `status` or `cancel`, and options.
        default_root: The folder where none is given.

    Raises:
        UsageError: There are no launches.
    """
    action, *options = words
    parser = Parser(prog=action, description="The jobs of commands with --launch, and what each printed last.")
    parser.add_argument("--output", default=default_root, metavar="FOLDER", help="Root of results, or of trained SAEs.")
    root = Path(parser.parse_args(options).output)
    launches = sorted(root.glob(f"{FOLDER}/*/{JOBS}"))
    if not launches:
        raise UsageError(f"nothing was launched below {root}: give the --output, or the --trained, of the command")
    for file in launches:
        worker = json.loads(file.read_text())["worker"]
        print(shlex.join(["python", "-m", worker["module"], *worker["argv"]]))
        for job in jobs_of(file.parent):
            state = job.state
            if action == "cancel" and job.is_running:
                job.cancel()
                state = "is cancelled"
            print(f"  {job.cluster} {job.number} {state}: {job.last_line(file.parent)}".rstrip(": "))
        for path, reason in failures_in(file.parent):
            print(f"  failed: {path}: {reason}")
    return 0
