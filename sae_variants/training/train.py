"""Training of SAEs from one stream of activations through SAELens' trainer, resumed after an interruption.

The SAEs of a call share the work of the language model and no numbers: each ends with the weights that it has alone.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError
from sae_variants.common.files import is_claimed, remove_folder
from sae_variants.common.worker import failure_of, is_worker, record_failure
from sae_variants.training.job import Job
from sae_variants.training.log import STEPS_BETWEEN_REPORTS, LogSettings, TrainingLog, is_begun, log_path
from sae_variants.training.plan import Plan
from sae_variants.training.sharing import (
    by_stream,
    check_memory,
    claim_plan,
    is_missing,
    split_by_memory,
    wait_for_plan,
)
from sae_variants.training.source import Source, open_source
from sae_variants.training.trainer import make_trainer

if TYPE_CHECKING:
    from torch import Tensor

    from sae_variants.training.windows import Batch

REPORTS_SHOWN = 3
"""SAEs whose report the progress bar shows."""
SCALE_BATCHES = 4
"""Batches from which the input scale of a fresh SAE is estimated."""


class TrainingFailed(UsageError):
    """Some SAEs of a call cannot be trained; the others are trained."""

    def __init__(self, failures: dict[Path, str]) -> None:
        super().__init__("; ".join(failures.values()))
        self.failures = failures
        """Reasons by the folder of the plan."""


def train_plans(
    plans: list[Plan],
    device: str = "cpu",
    force: bool = False,
    checkpoint_steps: int = 50,
    snapshots: tuple[float, ...] = (),
    log: LogSettings | None = None,
) -> None:
    """Train every plan that is not trained yet or lacks a snapshot, those that share a stream together.

    Args:
        plans: How each SAE is trained.
        device: Device of the language model and the SAEs.
        force: Whether finished SAEs are trained again; each is kept until the new one replaces it.
        checkpoint_steps: Steps between checkpoints.
        snapshots: Shares of the training after which the SAE is saved in inference form.
        log: What is logged beside the checkpoints; None for nothing, unless a log was begun.

    Raises:
        UsageError: The target cannot be loaded, a setting does not fit it, or an SAE does not fit in memory.
        TrainingFailed: At the end, if some SAEs could not be trained.
    """
    missing = list({plan.folder: plan for plan in plans}.values())
    if not force:
        missing = [plan for plan in missing if is_missing(plan, snapshots)]
    failures = {plan.folder: reason for plan in missing if (reason := failure_of(plan.folder))}
    missing = [plan for plan in missing if plan.folder not in failures]
    unchecked = [] if is_worker() else missing  # a worker leaves what does not fit to others, and goes on
    while missing:
        busy: list[Plan] = []
        for group in by_stream(missing):
            failed, left = _train_group(group, unchecked, device, force, checkpoint_steps, snapshots, log)
            if left != group:
                unchecked = [plan for plan in unchecked if plan.target != group[0].target]
            failures, busy = failures | failed, busy + left
            for folder, reason in failed.items():
                record_failure(folder, reason)
        if is_worker():
            break
        for plan in busy:
            wait_for_plan(plan)
        missing, force = [plan for plan in busy if is_missing(plan, snapshots)], False
    if failures:
        raise TrainingFailed(failures)


def _train_group(
    plans: list[Plan],
    unchecked: list[Plan],
    device: str,
    force: bool,
    checkpoint_steps: int,
    snapshots: tuple[float, ...],
    log: LogSettings | None,
) -> tuple[dict[Path, str], list[Plan]]:
    """Train plans that share a stream, as many at once as fit in memory.

    Before the first step, every unchecked plan of their target is refused if it does not fit alone.

    Returns:
        The failures; the plans that another process has claimed.
    """
    failures: dict[Path, str] = {}
    if all(is_claimed(plan.folder) for plan in plans):
        return failures, plans
    source = open_source(plans[0], device)
    for plan in unchecked:
        if plan.target == plans[0].target and not is_claimed(plan.folder):
            check_memory(plan, source.d_in, device)
    with contextlib.ExitStack() as stack:
        ours = [plan for plan in plans if claim_plan(plan, stack)]
        busy = [plan for plan in plans if plan not in ours]
        if force:
            for plan in ours:
                remove_folder(plan.checkpoint)
                log_path(plan).unlink(missing_ok=True)
        else:  # another process may have finished one meanwhile
            ours = [plan for plan in ours if is_missing(plan, snapshots)]
        for batch in split_by_memory(ours, source.d_in, device):
            failures |= train_together(batch, source, device, checkpoint_steps, snapshots, log)
    return failures, busy


def train_together(
    plans: list[Plan],
    source: Source,
    device: str,
    checkpoint_steps: int,
    snapshots: tuple[float, ...] = (),
    log: LogSettings | None = None,
    make_job: Callable[[Plan], Job] | None = None,
    is_shown: bool = True,
) -> dict[Path, str]:
    """Train plans on the same batches.

    Args:
        plans: How each SAE is trained; none of them is finished.
        source: The activations.
        device: Device of the SAEs.
        checkpoint_steps: Steps between checkpoints.
        snapshots: Shares of the training after which the SAE is saved in inference form.
        log: What is logged.
        make_job: Starts a plan, if it is not trained in this process alone.
        is_shown: Whether progress is shown.

    Returns:
        Why some could not be trained, by the folder of the plan.
    """
    from tqdm import tqdm

    batch_tokens = plans[0].settings.batch_tokens
    make_job = make_job or partial(_make_job, d_in=source.d_in, device=device)
    jobs, failures = _start_jobs(plans, make_job, snapshots)
    if not jobs:
        return failures
    start, last = min(job.first_batch(snapshots) for job in jobs), max(plan.settings.steps for plan in plans)
    source.reserve(last)
    for job in jobs:
        if log is not None or is_begun(job.plan):  # before a thread reads text by the same tokenizer
            job.log = TrainingLog(job.plan, log or LogSettings(), source.measure())
            job.log.resume(job.at)
    batches = _scaled(jobs, source.batches(start, last))
    last_batches: deque[Tensor] = deque(maxlen=max(job.calibration_batches for job in jobs))
    for job in jobs:
        job.last_batches = last_batches
        job.trainer.sae.cfg.metadata.prepend_bos = source.begins_with_bos()
    total, done = last * batch_tokens, start * batch_tokens
    bar = tqdm(total=total, initial=done, unit="tok", unit_scale=True, disable=not is_shown)
    names = dict.fromkeys(plan.name for plan in plans)
    bar.set_description(f"training {', '.join(names)}" + (f" ({len(plans)} SAEs)" if len(plans) > len(names) else ""))
    with bar:
        for step, batch in zip(range(start, last), batches, strict=False):
            if last_batches.maxlen:
                last_batches.append(batch.acts_ND.clone())  # without the buffer that it is a part of
            for job in jobs:
                if job.at == step and job.runs:
                    _take_step(job, batch, snapshots)
            bar.update(batch_tokens)
            if step % STEPS_BETWEEN_REPORTS == 0 or step + 1 == last:
                bar.set_postfix_str(" | ".join(job.report for job in jobs[:REPORTS_SHOWN]))
            if (step + 1) % checkpoint_steps == 0:
                for job in jobs:
                    if job.runs:
                        job.save_checkpoint()
            if not any(job.runs for job in jobs):
                break
    for job in jobs:
        if job.failure and job.log is not None:
            job.log.disconnect()
            job.failure += f"; its log until then is {job.log.path}" if job.log.path.exists() else ""
    return failures | {job.plan.folder: job.failure for job in jobs if job.failure}


def _make_job(plan: Plan, d_in: int, device: str) -> Job:
    check_memory(plan, d_in, device)
    return Job(plan, make_trainer(plan, d_in, device))


def _start_jobs(
    plans: list[Plan], make_job: Callable[[Plan], Job], snapshots: tuple[float, ...]
) -> tuple[list[Job], dict[Path, str]]:
    """Return a job per plan, resumed from its checkpoint, and the plans that cannot be built with the reasons."""
    jobs, failures = [], {}
    for plan in plans:
        try:
            job = make_job(plan)
            job.resume()
            if any(step <= job.at for step in plan.lacks(snapshots)):  # the checkpoint is past a missing snapshot
                job = make_job(plan)
            jobs.append(job)
        except UsageError as error:
            failures[plan.folder] = f"{plan.title}: {error}"
    return jobs, failures


def _take_step(job: Job, batch: Batch, snapshots: tuple[float, ...]) -> None:
    job.step(batch)
    if job.failure:
        return
    if job.at in {job.plan.snapshot_step(share) for share in snapshots}:
        job.save_snapshot()
    if job.is_done:
        job.finish()


def _scaled(jobs: list[Job], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Estimate the input scale of fresh SAEs from the first batches, and serve these batches too."""
    fresh = [
        job for job in jobs if job.at == 0 and job.trainer.sae.cfg.normalize_activations == "expected_average_only_in"
    ]
    if not fresh:
        return batches
    first = list(itertools.islice(batches, SCALE_BATCHES))
    for job in fresh:
        mean_norm = sum(batch.acts_ND.norm(dim=-1).mean().item() for batch in first) / len(first)
        job.trainer.activation_scaler.scaling_factor = job.trainer.sae.cfg.d_in**0.5 / mean_norm
    return itertools.chain(first, batches)
