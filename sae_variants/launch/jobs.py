"""Workers as jobs: started by submitit as processes here or as SLURM jobs, found again, and cancelled.

Below the root of what a command makes, `.launch/<hash of the command>/` has

    jobs.json    the jobs of the last start
    failures/    what a worker could not make, and why
    logs/        what each worker printed, and submitit's own files
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.files import new_file
from sae_variants.common.hashing import hash_value
from sae_variants.common.worker import LAUNCH, WORKER
from sae_variants.launch.options import MINUTES, Launch

if TYPE_CHECKING:
    import psutil

FOLDER, JOBS, LOGS = ".launch", "jobs.json", "logs"
SUBMITIT = "submitit"
"""In the command line of its processes."""
END_BYTES = 4096
"""Length of the end of a log that is read."""
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

    def __call__(self) -> None:
        """Run the command.

        Raises:
            RuntimeError: It cannot work here.
        """
        os.environ.update({LAUNCH: self.folder, WORKER: "1"})
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


@dataclass(frozen=True)
class Job:
    """A started worker."""

    cluster: str
    """`local` or `slurm`."""
    number: str
    """Process or SLURM job."""
    host: str
    """Where it was started from."""

    @property
    def is_running(self) -> bool:
        """Whether it runs or waits to run."""
        return bool(self._queue_entry()) if self.cluster == "slurm" else self._process() is not None

    @property
    def state(self) -> str:
        """What it does, and where, such as `runs on node7`, `is pending` or `has ended`."""
        if self.cluster == "slurm":
            state, _, host = self._queue_entry().partition(" ")
        else:
            state, host = "RUNNING" if self._process() else "", self.host
        if not state:
            return "has ended"
        return f"runs on {host}" if state == "RUNNING" else f"is {state.lower()}"

    def cancel(self) -> None:
        """End it; what it has finished stays."""
        if self.cluster == "slurm":
            subprocess.run(["scancel", self.number], check=False)
        elif process := self._process():
            import psutil

            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()

    def _queue_entry(self) -> str:
        """Return a SLURM job's state and node; empty once it has left the queue."""
        return _output_of("squeue", "-h", "-j", self.number, "-o", "%T %N")

    def _process(self) -> psutil.Process | None:
        """Return submitit's process of a local job; None if it does not run on this host."""
        import psutil

        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(int(self.number))
            is_ours = SUBMITIT in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if is_ours else None

    def has_died(self, folder: Path) -> bool:
        """Return whether it has ended without what submitit writes when a call returns or fails."""
        return not self.is_running and not (folder / LOGS / f"{self.number}_0_result.pkl").exists()

    def last_line(self, folder: Path) -> str:
        """Return the last line of its log, as a progress bar leaves it."""
        for ending in ("err", "out"):
            lines = _end_of(folder / LOGS / f"{self.number}_0_log.{ending}").replace("\r", "\n").splitlines()
            if lines := [line for line in lines if line.strip()]:
                return lines[-1].strip()
        return ""


def _end_of(log: Path) -> str:
    """Return the last characters of a file that may be long, or not exist."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - END_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


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


def _output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


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

    folder = Path(worker.folder)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    started: dict[int, Job] = {}
    try:
        for number in (number for number, job in enumerate(places) if job is None):
            executor = submitit.AutoExecutor(folder / LOGS, cluster=launch.cluster)
            executor.update_parameters(**_parameters(launch, number))
            with _apart_from_terminal():
                started[number] = Job(launch.cluster, str(executor.submit(worker).job_id), socket.gethostname())
    except Exception as error:
        for job in started.values():
            job.cancel()
        raise UsageError(f"--launch {launch.cluster}: the jobs cannot be started: {describe_error(error)}") from error
    jobs = [job or started[number] for number, job in enumerate(places)]
    with new_file(folder / JOBS) as partial:
        partial.write_text(json.dumps({"worker": asdict(worker), "jobs": [asdict(job) for job in jobs]}, indent=2))
    return jobs


@contextlib.contextmanager
def _apart_from_terminal() -> Iterator[None]:
    """Let processes that are started meanwhile ignore Ctrl-C, and hold neither the terminal nor a pipe open."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        signal.signal(signal.SIGINT, handler)


def _parameters(launch: Launch, number: int) -> dict[str, Any]:
    if launch.cluster == "slurm":
        given = {f"slurm_{name}": value for name, value in launch.slurm.items() if name != "time"}
        return {"name": "sae_variants", "timeout_min": launch.slurm.get("time", MINUTES), **given}
    import torch

    devices = torch.cuda.device_count()  # a device for each process, in turn
    gpu = {"gpus_per_node": 1, "visible_gpus": (number % devices,)} if devices else {}
    return {"timeout_min": 365 * MINUTES, **gpu}


def jobs_of(folder: Path) -> list[Job]:
    """Return the jobs of the last start of a launch."""
    try:
        return [Job(**job) for job in json.loads((folder / JOBS).read_text())["jobs"]]
    except FileNotFoundError:
        return []
