"""Start of workers by submitit: what each runs, and whether they can be started here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.files import new_file
from sae_variants.common.hashing import hash_value
from sae_variants.common.worker import LAUNCH, NEIGHBOURS, WORKER
from sae_variants.launch.jobs import FOLDER, JOBS, LOGS, Job, cancel_jobs
from sae_variants.launch.options import MINUTES, Launch

CANNOT_WORK = 2
"""Exit code of a command that is refused."""


@dataclass(frozen=True)
class Worker:
    """A command as a worker; submitit calls it, and calls it again after the job was preempted or timed out."""

    module: str
    """Package that is run, such as `eval_runners`."""
    argv: tuple[str, ...]
    """Its arguments."""
    folder: str
    """Folder of the launch."""
    workers: int = 1
    """Workers of the launch."""
    neighbours: int = 1
    """Workers of the launch that use the same device, itself included."""

    def __call__(self) -> None:
        """Run the command.

        Raises:
            RuntimeError: It cannot work here.
        """
        os.environ.update({LAUNCH: self.folder, WORKER: str(self.workers), NEIGHBOURS: str(self.neighbours)})
        sys.argv = [self.module, *self.argv]
        try:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code == CANNOT_WORK:
                raise RuntimeError(f"python -m {self.module} cannot work here; its log says why") from None
            if end.code not in (None, 0, 1):  # 1: an SAE has failed, which is recorded
                raise  # submitit has put the job back into the queue

    def checkpoint(self) -> Any:
        """Return what is called when the job starts again: the same, because the state of the work is in its files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch_folder(root: Path, module: str, argv: Sequence[str]) -> Path:
    """Return the folder of the launch of a command, below the root of what it makes."""
    return root / FOLDER / hash_value([module, *argv])


def require_cluster(launch: Launch) -> None:
    """Raise a UsageError, before any work, if the workers cannot be started here."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UsageError("--launch needs submitit: pip install submitit, or install the extra `cluster`") from error
    if launch.cluster != "slurm":
        return
    if lacking := [program for program in ("sbatch", "sinfo") if not shutil.which(program)]:
        raise UsageError(f"--launch slurm: there is no SLURM here (no {lacking[0]} on the PATH); use --launch local")
    answer = subprocess.run(["sinfo", "--all", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or [f"sinfo ended with code {answer.returncode}"])[-1]
        raise UsageError(f"--launch slurm: SLURM's controller does not answer: {reason}; use --launch local")
    known, wanted = answer.stdout.split(), launch.slurm.get("partition")
    if lacking := [name for name in (wanted.split(",") if wanted is not None else ()) if name not in known]:
        there = f"only {', '.join(known)}" if known else "and no other"
        raise UsageError(f"--slurm-partition {wanted}: there is no such partition as {lacking[0]}, {there}")


def start_jobs(launch: Launch, places: Sequence[Job | None], worker: Worker) -> list[Job]:
    """Start a worker in every place that is empty, and remember all in the folder of the launch.

    Args:
        launch: How.
        places: Jobs that go on, and None where one is to be started.
        worker: What each runs.

    Raises:
        UsageError: They cannot be started.
    """
    import submitit

    folder, devices = Path(worker.folder), _device_count(launch)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    neighbours = math.ceil(len(places) / max(1, devices)) if launch.cluster == "local" else 1
    worker = replace(worker, workers=len(places), neighbours=neighbours)
    started: dict[int, Job] = {}
    with _apart_from_terminal():  # until they are remembered, so that Ctrl-C leaves none that nobody knows
        try:
            for number in (number for number, job in enumerate(places) if job is None):
                executor = submitit.AutoExecutor(folder / LOGS, cluster=launch.cluster)
                executor.update_parameters(**_parameters(launch, number, devices))
                started[number] = Job(launch.cluster, str(executor.submit(worker).job_id), socket.gethostname())
        except Exception as error:
            cancel_jobs(list(started.values()))
            reason = describe_error(error)
            raise UsageError(f"--launch {launch.cluster}: the jobs cannot be started: {reason}") from error
        jobs = [job or started[number] for number, job in enumerate(places)]
        with new_file(folder / JOBS) as partial:
            partial.write_text(json.dumps({"worker": asdict(worker), "jobs": [asdict(job) for job in jobs]}, indent=2))
    return jobs


@contextlib.contextmanager
def _apart_from_terminal() -> Iterator[None]:
    """Let processes that are started meanwhile outlive Ctrl-C and the terminal, and hold neither it nor a pipe open."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    kept, nowhere = [os.dup(number) for number in (0, 1, 2)], os.open(os.devnull, os.O_RDWR)
    try:
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _device_count(launch: Launch) -> int:
    """Return the number of accelerators here that workers use; SLURM gives each job its own."""
    if launch.cluster == "slurm":
        return 0
    import torch

    return torch.cuda.device_count()


def _parameters(launch: Launch, number: int, devices: int) -> dict[str, Any]:
    if launch.cluster == "slurm":
        given = {f"slurm_{name}": value for name, value in launch.slurm.items() if name != "time"}
        return {"name": "sae_variants", "timeout_min": launch.slurm.get("time", MINUTES), **given}
    gpu = {"gpus_per_node": 1, "visible_gpus": (number % devices,)} if devices else {}  # each process one, in turn
    return {"timeout_min": 365 * MINUTES, **gpu}
