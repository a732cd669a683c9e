"""Share the work of a command: start workers, watch what they finish, and start others in the place of dead ones.

The state of the work is in its files: what is finished exists, and what is in work is claimed. So workers need no
orders: each does what is neither, and the command attaches to them, or starts new ones, whenever it is given again.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.common.files import claim_owner, is_claimed
from sae_variants.common.worker import FAILURES, LAUNCH, failure_of
from sae_variants.launch.jobs import Job, jobs_of
from sae_variants.launch.options import Launch
from sae_variants.launch.start import Worker, launch_folder, require_cluster, start_jobs

POLL_SECONDS = 1.0
STARTS = 3
"""Starts without a finished cell between them after which the command gives up."""
SHOWN = 3
"""Cells in work that the progress bar shows."""
RATE = r"[\d.]+[kM]?tok/s"
"""Tokens per second in the progress bar of a training."""


@dataclass(frozen=True)
class Cell:
    """A training or a result."""

    title: str
    """Names it."""
    path: Path | None
    """File or folder that is claimed while it is made; None before that is known."""
    is_done: bool
    """Whether it is finished."""

    @property
    def is_left(self) -> bool:
        """Whether it is neither finished nor known to fail."""
        return not self.is_done and not (self.path and failure_of(self.path))


Cells = Callable[[], Iterable[Cell]]
"""Looks up the cells of a command."""


def share_work(launch: Launch, module: str, argv: Sequence[str], root: Path, cells: Cells) -> bool:
    """Let workers do the work of a command.

    Args:
        launch: How they are started.
        module: Package of the command, such as `eval_runners`.
        argv: Arguments of the command without those of the launch.
        root: Root of what it makes.
        cells: Looks up its cells.

    Returns:
        Whether all cells are finished or failed; false if the workers go on without this process.

    Raises:
        UsageError: The workers cannot be started, or end without finishing the work.
        KeyboardInterrupt: After a line that says how to attach again.
    """
    require_cluster(launch)
    folder = launch_folder(root, module, argv).absolute()
    os.environ[LAUNCH] = str(folder)
    jobs = [job for job in jobs_of(folder) if job.is_running]
    if jobs:
        print(f"attached to {len(jobs)} running jobs: {', '.join(job.number for job in jobs)}")
    else:
        shutil.rmtree(folder / FAILURES, ignore_errors=True)  # what failed before is tried again
    worker, why = Worker(module, tuple(argv), str(folder)), ""
    starts = 0
    left = sum(cell.is_left for cell in cells()) if jobs or launch.detach else _wait_for_others(cells)
    while left or jobs:
        if not jobs:
            if starts == STARTS:
                raise UsageError(_why_unfinished(folder, cells))
            starts += 1
            jobs = start_jobs(launch, [None] * min(launch.jobs, left), worker)
            print(f"{why}started {len(jobs)} jobs: {', '.join(job.number for job in jobs)}; their logs are in {folder}")
        if launch.detach:
            print("they go on by themselves: give the same command again to wait for them and to see the results")
            return False
        try:
            _watch(jobs, lambda places: start_jobs(launch, places, worker), folder, cells)
        except KeyboardInterrupt:
            print("\nthe jobs go on: give the same command again to wait for them, or `suite cancel` to end them")
            raise
        jobs, before, left = [], left, _wait_for_others(cells)
        starts = starts if left == before else 0
        why = f"all jobs have ended and {left} cells are left: "
    return True


def _wait_for_others(cells: Cells) -> int:
    """Wait while processes of other commands, or such as died on other hosts, have claimed all cells that are left.

    Returns:
        How many are left then.
    """
    shown = ""
    while True:
        left = [cell for cell in cells() if cell.is_left]
        if _is_any_free(left) or not any(cell.path for cell in left):
            return len(left)
        if (owners := "; ".join(in_work(left)[:SHOWN])) != shown:
            print(f"waiting for other processes: {owners}")
        shown = owners
        time.sleep(POLL_SECONDS)


def _is_any_free(cells: Iterable[Cell]) -> bool:
    """Return whether there is a cell to do that nobody has claimed."""
    return any(cell.path and cell.is_left and not is_claimed(cell.path) for cell in cells)


def _watch(jobs: list[Job], start: Callable[[Sequence[Job | None]], list[Job]], folder: Path, cells: Cells) -> None:
    """Show what is finished and what is in work, and start jobs in the place of dead ones, until no job runs."""
    from tqdm import tqdm

    replaced = 0
    with tqdm(total=0, unit="cell", desc="launch") as bar:
        running = True
        while running:
            running = any(job.is_running for job in jobs)  # before the cells, so that the last look sees all of them
            all_cells = list(cells())
            finished = sum(not cell.is_left for cell in all_cells)
            replaced = replaced if finished == bar.n else 0
            if not bar.total:
                bar.initial = finished  # so that the time that is left follows from what the jobs finish
            bar.total, bar.n = len(all_cells), finished
            rates = [rate.group() for job in jobs if (rate := re.search(RATE, job.last_line(folder)))]
            bar.set_postfix_str(" | ".join([*in_work(all_cells)[:SHOWN], *rates]))
            if running and replaced < STARTS and (dead := _replaceable(jobs, folder, all_cells)):
                replaced += 1
                jobs = start([None if job == dead else job for job in jobs])
                bar.write(f"a job died: started another in the place of {dead.number}")
            if running:
                time.sleep(POLL_SECONDS)


def _replaceable(jobs: Sequence[Job], folder: Path, cells: Iterable[Cell]) -> Job | None:
    """Return a job that died, if something is left that nobody does."""
    dead = next((job for job in jobs if job.has_died(folder)), None)
    return dead if dead and _is_any_free(cells) else None


def in_work(cells: Iterable[Cell]) -> list[str]:
    """Return which cells are in work, and who does them."""
    owners = ((cell, claim_owner(cell.path)) for cell in cells if cell.path and cell.is_left)
    return [f"{cell.title}: {owner}" for cell, owner in owners if owner]


def _why_unfinished(folder: Path, cells: Cells) -> str:
    left = [cell.title for cell in cells() if cell.is_left]
    lines = [f"{job.number}: {line}" for job in jobs_of(folder) if (line := job.last_line(folder))]
    said = f"; their last lines: {'; '.join(lines)}" if lines else ""
    return f"the jobs ended {STARTS} times without finishing {left[0]} and {len(left) - 1} others{said}"
