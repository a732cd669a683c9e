"""Trains one or many SAEs from one stream of activations, through SAELens' own trainer, and resumes after a kill.

SAEs of one call share the language model's work, never numbers: each ends with the weights it would have alone.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import backup_of
from sae_variants.language_model.contexts import read_contexts
from sae_variants.language_model.hooks import hook_activations, hook_width
from sae_variants.language_model.load import free_memory, load_model
from sae_variants.registry.build import make_config
from sae_variants.training.job import STEPS_BETWEEN_REPORTS, Job
from sae_variants.training.plan import Plan
from sae_variants.training.trainer import make_trainer

MOST_SHOWN = 3
"""SAEs whose loss the progress bar shows."""


class TrainingFailed(UsageError):
    """SAEs that cannot be trained; the others of the call are."""

    def __init__(self, failures: dict[Path, str]) -> None:
        super().__init__("; ".join(failures.values()))
        self.failures = failures
        """Folder of the plan -> what happened."""


def train_plans(
    plans: list[Plan],
    device: str = "cpu",
    force: bool = False,
    checkpoint_steps: int = 50,
    snapshots: tuple[float, ...] = (),
) -> None:
    """Trains every plan that is not trained yet, or lacks a snapshot, those that agree on the stream together.

    Args:
        snapshots: shares of the training after which the SAE is kept as it is then.

    Raises:
        UsageError: the target cannot be loaded, or a setting does not fit it.
        TrainingFailed: at the end, if training diverged for some of them.
    """
    for made in plans:
        if force:
            for folder in (made.checkpoint, backup_of(made.checkpoint)):  # a finished SAE stays until it is replaced
                shutil.rmtree(folder, ignore_errors=True)
    distinct = {made.folder: made for made in plans}.values()
    missing = [made for made in distinct if force or not made.is_trained or made.lacks(snapshots)]
    grouped: dict[tuple[Any, ...], list[Plan]] = {}
    for made in missing:
        source = (made.key["model"], made.target.dtype, made.target.hook_name, made.key["text"])
        grouped.setdefault((*source, *made.settings.stream), []).append(made)
    failures: dict[Path, str] = {}
    for group in grouped.values():
        failures |= _train_group(group, device, checkpoint_steps, snapshots)
    if failures:
        raise TrainingFailed(failures)


def _train_group(
    plans: list[Plan], device: str, checkpoint_steps: int, snapshots: tuple[float, ...]
) -> dict[Path, str]:
    """Trains plans that agree on the stream, as many at once as fit in memory; what went wrong with which."""
    target, settings = plans[0].target, plans[0].settings
    model = load_model(target.model_name, device, target.dtype)
    d_in = hook_width(model, target.hook_name)
    if settings.context_size > model.cfg.n_ctx:
        raise UsageError(f"context_size = {settings.context_size} exceeds the model's {model.cfg.n_ctx} positions")
    failures: dict[Path, str] = {}
    for part in _fitting(plans, d_in, device):
        with contextlib.ExitStack() as stack:
            ours = [made for made in part if _locked(made, stack)]
            for made in part:
                if made not in ours:
                    failures[made.folder] = f"{made.label} is being trained by another command: wait for it"
            if ours:
                failures |= _train_together(ours, model, d_in, device, checkpoint_steps, snapshots)
    return failures


def _locked(made: Plan, stack: contextlib.ExitStack) -> bool:
    """Whether this command now has the plan to itself, until the stack is left."""
    from filelock import FileLock, Timeout

    try:
        made.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = made.folder.with_name(made.folder.name + ".lock")
        held = FileLock(lock, timeout=0).__enter__()
        stack.callback(lock.unlink, missing_ok=True)
        stack.callback(held.release)
    except Timeout:
        return False
    except OSError as error:
        raise UsageError(f"cannot write to {made.folder.parent}: {error.strerror}; give another --trained") from error
    return True


def _fitting(plans: list[Plan], d_in: int, device: str) -> list[list[Plan]]:
    """The plans in parts, each of which takes at most half of the free memory; at least one plan in each."""
    room = free_memory(device) / 2
    parts: list[list[Plan]] = [[]]
    taken = 0
    for made in plans:
        size = 4 if made.settings.dtype == "float32" else 8 if made.settings.dtype == "float64" else 2
        cfg = make_config(made.name, d_in=d_in, **made.sized)
        needed = 4 * cfg.n_weights * size  # weights, gradients and Adam's two moments
        if parts[-1] and taken + needed > room:
            parts.append([])
            taken = 0
        parts[-1].append(made)
        taken += needed
    return parts


def _train_together(
    plans: list[Plan], model: Any, d_in: int, device: str, checkpoint_steps: int, snapshots: tuple[float, ...]
) -> dict[Path, str]:
    from sae_lens.util import get_special_token_ids
    from tqdm import tqdm

    from sae_variants.training.windows import WindowStream

    target, settings = plans[0].target, plans[0].settings
    stream = WindowStream(
        contexts=lambda: read_contexts(target, model, settings.context_size),
        activations=hook_activations(model, target.hook_name, settings.dtype),
        special_ids=tuple(get_special_token_ids(model.tokenizer)),
        context_size=settings.context_size,
        window=settings.stream_window,
        batch_rows=settings.batch_tokens,
        buffer_contexts=settings.buffer_contexts,
        seed=settings.seed,
    )
    failures: dict[Path, str] = {}
    jobs: list[Job] = []
    for made in plans:
        try:
            job = Job(made, make_trainer(made, d_in, device))
            job.resume()
            if any(step <= job.at for step in made.lacks(snapshots)):  # the checkpoint is past it
                job = Job(made, make_trainer(made, d_in, device))
            jobs.append(job)
        except UsageError as error:
            failures[made.folder] = f"{made.label} (seed {made.settings.seed}): {error}"
    jobs = [job for job in jobs if job.plan.folder not in failures]
    if not jobs:
        return failures
    start = min(job.at for job in jobs)
    batches = _scaled(jobs, stream.batches(start))
    last = max(made.settings.steps for made in plans)
    bar = tqdm(total=last * settings.batch_tokens, initial=start * settings.batch_tokens, unit="tok", unit_scale=True)
    names = dict.fromkeys(made.name for made in plans)
    bar.set_description(f"training {', '.join(names)}" + (f" ({len(plans)} SAEs)" if len(plans) > len(names) else ""))
    try:
        for step, batch in zip(range(start, last), batches, strict=False):
            for job in jobs:
                if job.at == step and job.runs:
                    job.step(batch)
                    if job.at in {job.plan.snapshot_step(share) for share in snapshots} and not job.failure:
                        job.save_snapshot()
                    if job.is_done and not job.failure:
                        job.finish()
            bar.update(settings.batch_tokens)
            if step % STEPS_BETWEEN_REPORTS == 0 or step + 1 == last:
                bar.set_postfix_str(" | ".join(job.shown for job in jobs[:MOST_SHOWN]))
            if (step + 1) % checkpoint_steps == 0:
                for job in jobs:
                    if job.runs:
                        job.save_checkpoint()
            if not any(job.runs for job in jobs):
                break
    finally:
        bar.close()
    return failures | {job.plan.folder: job.failure for job in jobs if job.failure}


def _scaled(jobs: list[Job], batches: Iterator[Any]) -> Iterator[Any]:
    """Estimates the input scale of fresh SAEs from the first batches, which are then served as well."""
    fresh = [
        job for job in jobs if job.at == 0 and job.trainer.sae.cfg.normalize_activations == "expected_average_only_in"
    ]
    if not fresh:
        return batches
    first = list(itertools.islice(batches, 4))
    for job in fresh:
        mean_norm = sum(batch.acts_ND.norm(dim=-1).mean().item() for batch in first) / len(first)
        job.trainer.activation_scaler.scaling_factor = job.trainer.sae.cfg.d_in**0.5 / mean_norm
    return itertools.chain(first, batches)
