"""Workers as jobs: processes here or SLURM jobs, found again by their number, watched and ended.

Below the root of what a command makes, `.launch/<hash of the command>/` has

    jobs.json    the jobs of the last start
    failures/    what a worker could not make, and why
    logs/        what each worker printed, and submitit's own files
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

FOLDER, JOBS, LOGS = ".launch", "jobs.json", "logs"
SUBMITIT = "submitit"
"""In the command line of its processes."""
END_BYTES = 4096
"""Length of the end of a log that is read."""
CANCEL_SECONDS = 40.0
"""Time in which a cancelled job ends: SLURM kills it 30 s, as it is usually configured, after it told it to end."""
GONE = "Invalid job id"
"""In the answer of SLURM about a job that it has forgotten."""


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
        """Whether it runs or waits to run, as far as this host can see."""
        return bool(self._queue_entry()) if self.cluster == "slurm" else self._process() is not None

    @property
    def state(self) -> str:
        """What it does, and where, such as `runs on node7`, `is pending` or `has ended`."""
        if self.cluster == "slurm":
            state, _, host = self._queue_entry().partition(" ")
        elif self.host != socket.gethostname():
            return f"was started on {self.host} (only there it can be seen and ended)"
        else:
            state, host = "RUNNING" if self._process() else "", self.host
        if not state:
            return "has ended"
        return f"runs on {host}" if state == "RUNNING" else f"is {state.lower()}"

    def cancel(self) -> list[psutil.Process]:
        """Tell it to end; return its processes on this host, which are killed. What it has finished stays."""
        if self.cluster == "slurm":
            subprocess.run(["scancel", self.number], check=False)
        elif process := self._process():
            import psutil

            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()  # so that it starts nothing meanwhile
                processes = [process, *process.children(recursive=True)]
                for each in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
                return processes
        return []

    def _queue_entry(self) -> str:
        """Return a SLURM job's state and node; empty once it has left the queue, UNKNOWN if SLURM does not answer."""
        command = ["squeue", "-h", "-j", self.number, "-o", "%T %N"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return "UNKNOWN" if answer.returncode and GONE not in answer.stderr else answer.stdout.strip()

    def _process(self) -> psutil.Process | None:
        """Return submitit's process of a local job; None if it does not run on this host."""
        import psutil

        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(int(self.number))
            is_ours = SUBMITIT in " ".join(process.cmdline()) and is_alive(process)
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


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has ended may stay in the table until its parent asks for it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def cancel_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Tell jobs to end, wait until they have, and return those that go on after `CANCEL_SECONDS` all the same."""
    killed = {job: job.cancel() for job in jobs}
    end = time.monotonic() + CANCEL_SECONDS
    while left := [job for job, processes in killed.items() if job.is_running or any(map(is_alive, processes))]:
        if time.monotonic() >= end:
            break
        time.sleep(0.2)
    return left


def jobs_of(folder: Path) -> list[Job]:
    """Return the jobs of the last start of a launch."""
    try:
        return [Job(**job) for job in json.loads((folder / JOBS).read_text())["jobs"]]
    except FileNotFoundError:
        return []
