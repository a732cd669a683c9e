"""Trains one or many SAEs from one stream of activations, through SAELens' own trainer, and resumes after a kill.

SAEs of one call share the language model's work, never numbers: each ends with the weights it would have alone.
A finished SAE appears in its folder at once and whole; until then only its checkpoint exists (see `_plan`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_variants import _models, _register, _targets
from sae_variants._errors import UsageError
from sae_variants._plan import RECORD, Plan

STEPS_BETWEEN_REPORTS = 10


@dataclass
class _Job:
    plan: Plan
    trainer: Any
    shown: str = ""
    started: float = field(default_factory=time.time)

    @property
    def step(self) -> int:
        return self.trainer.n_training_steps

    @property
    def is_done(self) -> bool:
        return self.step >= self.plan.settings.steps


def train(plans: list[Plan], device: str = "cpu", force: bool = False, checkpoint_steps: int = 50) -> None:
    """Trains every plan that is not trained yet, those that agree on the stream together.

    Raises:
        UsageError: the target cannot be loaded, a setting does not fit it, or training diverged.
    """
    for made in plans:
        if force:
            shutil.rmtree(made.checkpoint, ignore_errors=True)  # a finished SAE stays until the new one replaces it
    missing = [made for made in {made.folder: made for made in plans}.values() if force or not made.is_trained]
    grouped: dict[tuple[Any, ...], list[Plan]] = {}
    for made in missing:
        grouped.setdefault(
            (made.key["model"], made.target.hook_name, made.key["text"], *made.settings.stream), []
        ).append(made)
    for group in grouped.values():
        _train_group(group, device, checkpoint_steps)


def _train_group(plans: list[Plan], device: str, checkpoint_steps: int) -> None:
    from sae_lens.util import get_special_token_ids
    from tqdm import tqdm

    from sae_variants._windows import WindowStream

    target, settings = plans[0].target, plans[0].settings
    model = _models.load_model(target.model_name, device, target.dtype)
    d_in = _models.hook_width(model, target.hook_name)
    if settings.context_size > model.cfg.n_ctx:
        raise UsageError(f"context_size = {settings.context_size} exceeds the model's {model.cfg.n_ctx} positions")
    stream = WindowStream(
        contexts=lambda: _targets.contexts(target, model, settings.context_size),
        activations=_models.hook_activations(model, target.hook_name, settings.dtype),
        special_ids=tuple(get_special_token_ids(model.tokenizer)),
        context_size=settings.context_size,
        window=settings.stream_window,
        batch_rows=settings.batch_tokens,
        buffer_contexts=settings.buffer_contexts,
        seed=settings.seed,
    )
    jobs = [_Job(made, _trainer(made, d_in, device)) for made in plans]
    for job in jobs:
        _resume(job)
    start = min(job.step for job in jobs)
    batches = _scaled(jobs, stream.batches(start))
    last = max(made.settings.steps for made in plans)
    bar = tqdm(total=last * settings.batch_tokens, initial=start * settings.batch_tokens, unit="tok", unit_scale=True)
    bar.set_description("training " + ", ".join(made.name for made in plans))
    try:
        for step, batch in zip(range(start, last), batches, strict=False):
            for job in jobs:
                if job.step == step and not job.is_done:
                    _step(job, batch)
                    if job.is_done:
                        _finish(job)
            bar.update(settings.batch_tokens)
            if step % STEPS_BETWEEN_REPORTS == 0 or step + 1 == last:
                bar.set_postfix_str(" | ".join(job.shown for job in jobs))
            if (step + 1) % checkpoint_steps == 0:
                for job in jobs:
                    if not job.is_done:
                        _save_checkpoint(job)
    finally:
        bar.close()


def _trainer(made: Plan, d_in: int, device: str) -> Any:
    """SAELens' trainer around a fresh SAE."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = made.settings
    sae = _register.build(
        made.name,
        d_in=d_in,
        seed=settings.seed,
        device=device,
        dtype=settings.dtype,
        normalize_activations=settings.normalize_activations,
        **made.sized,
    )
    sae.cfg.metadata.model_name = made.target.model_name
    sae.cfg.metadata.hook_name = made.target.hook_name
    sae.cfg.metadata.context_size = settings.context_size
    sae.cfg.metadata.prepend_bos = True
    sae.cfg.metadata.dataset_path = made.key["text"]
    sae.cfg.metadata.training_tokens = (
        0 if not getattr(sae.cfg, "learns", True) else settings.steps * settings.batch_tokens
    )
    sae.cfg.metadata.seed = settings.seed
    cfg = SAETrainerConfig(
        total_training_samples=settings.steps * settings.batch_tokens,
        train_batch_size_samples=settings.batch_tokens,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate / 10,
        lr_warm_up_steps=round(settings.warm_up_share * settings.steps),
        lr_decay_steps=round(settings.decay_share * settings.steps),
        device=device,
        autocast=settings.autocast,
        dead_feature_window=max(1, settings.dead_after_tokens // settings.batch_tokens),
        feature_sampling_window=max(2, settings.steps // 4),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg, sae.to(device), iter(()))


def _scaled(jobs: list[_Job], batches: Iterator[Any]) -> Iterator[Any]:
    """Estimates the input scale of fresh SAEs from the first batches, which are then served as well."""
    fresh = [
        job for job in jobs if job.step == 0 and job.trainer.sae.cfg.normalize_activations == "expected_average_only_in"
    ]
    if not fresh:
        return batches
    first = list(itertools.islice(batches, 4))
    for job in fresh:
        mean_norm = sum(batch.acts_ND.norm(dim=-1).mean().item() for batch in first) / len(first)
        job.trainer.activation_scaler.scaling_factor = job.trainer.sae.cfg.d_in**0.5 / mean_norm
    return itertools.chain(first, batches)


def _step(job: _Job, batch: Any) -> None:
    trainer = job.trainer
    trainer.maybe_reset_sparsity()
    if hasattr(trainer.sae, "special_N"):
        trainer.sae.special_N = batch.special_N
    try:
        output = trainer.step(batch.acts_ND)
    except ValueError as error:
        raise UsageError(f"{job.plan.name} cannot be trained with these settings: {error}") from error
    trainer.n_training_steps += 1
    if trainer.n_training_steps % STEPS_BETWEEN_REPORTS == 1 or job.is_done:
        _report(job, output)


def _report(job: _Job, output: Any) -> None:
    import torch

    with torch.no_grad():
        loss = output.loss.item()
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise UsageError(
                f"training {job.plan.name} diverged at step {job.step} (loss {loss}): lower --learning-rate"
            )
        x, error = output.sae_in, (output.sae_in - output.sae_out).pow(2).sum()
        explained = 1 - (error / (x - x.mean(0)).pow(2).sum().clamp(min=1e-12)).item()
        l0 = output.feature_acts.bool().sum(-1).float().mean().item()
        dead = job.trainer.dead_neurons.float().mean().item()
    job.shown = f"{job.plan.name}: loss {loss:.2f} L0 {l0:.1f} EV {explained:.3f} dead {dead:.0%}"


@contextlib.contextmanager
def _writing(partial: Path) -> Iterator[None]:
    """A fresh folder to write to; if that fails (a full disk, no permission) it is removed and the place is named."""
    from safetensors import SafetensorError

    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"cannot write the SAE to {partial.parent}: {error}; give another --trained") from error


def _save_checkpoint(job: _Job) -> None:
    partial = job.plan.checkpoint.with_suffix(".partial")
    with _writing(partial):
        job.trainer.save_checkpoint("state", base_path=partial)
    old = job.plan.checkpoint
    replaced = old.with_suffix(".old")
    shutil.rmtree(replaced, ignore_errors=True)
    if old.exists():
        old.rename(replaced)
    partial.rename(old)
    shutil.rmtree(replaced, ignore_errors=True)


def _resume(job: _Job) -> None:
    """Goes on from the last whole checkpoint, if there is one."""
    replaced = job.plan.checkpoint.with_suffix(".old")
    if not job.plan.checkpoint.exists() and replaced.exists():
        replaced.rename(job.plan.checkpoint)
    state = job.plan.checkpoint / "state"
    if not state.is_dir():
        return
    try:
        job.trainer.load_trainer_state(state)
        job.trainer.sae.load_weights_from_checkpoint(state)
    except Exception as error:
        raise UsageError(
            f"the checkpoint {job.plan.checkpoint} cannot be read ({type(error).__name__}): remove it to start anew"
        ) from error


def _finish(job: _Job) -> None:
    """Folds the input scale into the weights, saves in SAELens' layout, removes the checkpoint."""
    from importlib.metadata import version

    from safetensors.torch import save_file

    trainer, made = job.trainer, job.plan
    if trainer.activation_scaler.scaling_factor is not None:
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    partial = made.folder.with_name(made.folder.name + ".partial")
    record = {
        **made.key,
        "trained_tokens": trainer.sae.cfg.metadata.training_tokens,
        "seconds_of_the_last_run": round(time.time() - job.started, 1),
        "last_report": job.shown,
        "versions": {package: version(package) for package in ("sae-lens", "transformer-lens", "torch")},
    }
    with _writing(partial):
        trainer.sae.save_inference_model(partial)
        save_file({"sparsity": trainer.log_feature_sparsity}, partial / "sparsity.safetensors")
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    if made.folder.exists():
        shutil.rmtree(made.folder)
    partial.rename(made.folder)
    shutil.rmtree(made.checkpoint, ignore_errors=True)
