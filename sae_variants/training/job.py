"""One SAE in training: its steps, its checkpoints, its snapshots, and the SAE that remains.

A finished SAE appears in its folder at once and complete; until then only its checkpoint exists (see `plan`).
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import new_folder, remove_folder, restore_folder
from sae_variants.language_model.hub import model_revision
from sae_variants.language_model.hub_text import dataset_commit
from sae_variants.registry.build import load
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import find_variant
from sae_variants.training.log import STEPS_BETWEEN_REPORTS
from sae_variants.training.plan import RECORD, TRACE, Plan

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepOutput
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor

    from sae_variants.training.log import TrainingLog
    from sae_variants.training.windows import Batch

CALIBRATED_TOKENS = 32_768
"""Tokens, the last ones of the training, on which thresholds are calibrated."""
SHARDED_STATE = "shards"
"""Name, in the folder of a checkpoint, of the state of a training in several processes."""


@dataclass
class Job:
    """A plan with the trainer that carries it out."""

    plan: Plan
    """How the SAE is trained."""
    trainer: SAETrainer[Any, Any]
    """SAELens' trainer of the SAE."""
    report: str = ""
    """Loss, L0, explained variance and dead latents at the last report."""
    failure: str = ""
    """Why training ended early; empty if it did not."""
    last_batches: Sequence[Tensor] = ()
    """Activations [N, D] of the last batches, on which thresholds are calibrated; filled during training."""
    log: TrainingLog | None = None
    """Log of the training, if it was requested."""
    started: float = field(default_factory=time.time)
    """Time of the start in seconds."""

    @property
    def at(self) -> int:
        """Number of completed steps."""
        return self.trainer.n_training_steps

    @property
    def is_done(self) -> bool:
        """Whether every step is completed."""
        return self.at >= self.plan.settings.steps

    @property
    def runs(self) -> bool:
        """Whether steps remain and none failed."""
        return not self.is_done and not self.failure

    def step(self, batch: Batch) -> None:
        """Take a training step on a batch; a step that fails sets `failure`."""
        trainer = self.trainer
        trainer.maybe_reset_sparsity()
        hooks = hooks_of(trainer.sae)
        hooks.special_N, hooks.context_N = batch.special_N, batch.context_N
        learning_rate = trainer.optimizer.param_groups[0]["lr"] * hooks.learning_rate_scale(self.at)
        try:
            output = trainer.step(batch.acts_ND)
        except ValueError as error:
            self.failure = f"{self.plan.title} cannot be trained with these settings: {error}"
            return
        trainer.n_training_steps += 1
        if trainer.n_training_steps % STEPS_BETWEEN_REPORTS == 1 or self.is_done:
            numbers = self._report(output)
            if self.log is not None and not self.failure:
                numbers["learning_rate"] = learning_rate
                self.log.write(self.at, numbers, self._build_inference)

    def _report(self, output: TrainStepOutput) -> dict[str, Any]:
        """Set `report`, and return its numbers."""
        import torch

        from sae_variants.ops.shards import HERE

        with torch.no_grad():
            loss = output.loss.item()
            if loss != loss or loss in (float("inf"), float("-inf")):
                title = self.plan.title
                self.failure = f"training {title} diverged at step {self.at} (loss {loss}): lower --learning-rate"
            shards, x = getattr(self.trainer.sae, "shards", HERE), output.sae_in
            error, total = ((x - other).pow(2).sum() for other in (output.sae_out, shards.mean(x)))
            explained = 1 - (shards.over_tokens(error) / shards.over_tokens(total).clamp(min=1e-12)).item()
            acts, dead_S = output.feature_acts, self.trainer.dead_neurons
            metrics: dict[str, Any] = {
                "l0": lambda: shards.average(shards.over_latents(acts.bool().sum(-1).float().mean())).item(),
                "dead": lambda: (shards.over_latents(shards.least(dead_S.float()).mean()) / shards.count).item(),
                **output.metrics,
            }
            l0, dead = (value() if callable(value) else value for value in (metrics["l0"], metrics["dead"]))
        phase = f"phase {metrics['phase']} " if "phase" in metrics else ""
        self.report = f"{self.plan.name}: {phase}loss {loss:.2f} L0 {l0:.1f} EV {explained:.3f} dead {dead:.0%}"
        losses = {name: value.item() for name, value in output.losses.items()}
        phases = {"phase": metrics["phase"]} if "phase" in metrics else {}
        return {"loss": loss, **losses, "l0": l0, "explained_variance": explained, "dead": dead, **phases}

    def _build_inference(self, folder: Path) -> SAE[Any]:
        """Save the present SAE in inference form in a folder, and load it."""
        _save(self._folded(), folder)
        return load(folder, str(self.trainer.sae.device))

    def save_checkpoint(self) -> None:
        """Replace the checkpoint by the present state."""
        with new_folder(self.plan.checkpoint) as folder:
            self.trainer.save_checkpoint("state", base_path=folder)
            self._save_trace(folder)

    def _save_trace(self, folder: Path) -> None:
        import numpy as np

        if trace := hooks_of(self.trainer.sae).trace:
            np.savez_compressed(folder / TRACE, **{name: values.cpu().numpy() for name, values in trace.items()})

    def resume(self) -> None:
        """Continue from the last complete checkpoint, if one exists."""
        restore_folder(self.plan.checkpoint)
        if (self.plan.checkpoint / SHARDED_STATE).is_dir():
            raise UsageError(
                f"the checkpoint {self.plan.checkpoint} is of several processes: continue with torchrun, or remove it "
                "to start anew"
            )
        state = self.plan.checkpoint / "state"
        if not state.is_dir():
            return
        try:
            self.trainer.load_trainer_state(state)
            self.trainer.sae.load_weights_from_checkpoint(state)
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> UsageError:
        reason = f"the checkpoint {self.plan.checkpoint} cannot be read ({type(error).__name__})"
        return UsageError(f"{reason}: remove it to start anew")

    @property
    def calibration_batches(self) -> int:
        """Number of the last batches on which thresholds are calibrated; 0 if the SAE has none to calibrate."""
        calibrates = hooks_of(self.trainer.sae).calibrates
        return max(1, CALIBRATED_TOKENS // self.plan.settings.batch_tokens) if calibrates else 0

    def first_batch(self, snapshots: tuple[float, ...]) -> int:
        """Return the first batch that is read to continue: that of the next step, or an earlier one to calibrate."""
        saves = [self.plan.settings.steps, *(self.plan.snapshot_step(share) for share in snapshots)]
        next_save = min((step for step in saves if step > self.at), default=self.at)
        return max(0, min(self.at, next_save - self.calibration_batches)) if self.calibration_batches else self.at

    def _calibrate(self, sae: TrainingSAE[Any]) -> None:
        """Set the SAE's thresholds on the last batches, in the units of its training."""
        if count := self.calibration_batches:
            hooks_of(sae).calibrate([self.trainer.activation_scaler(acts) for acts in list(self.last_batches)[-count:]])

    def save_snapshot(self) -> None:
        """Save the present SAE in inference form."""
        sae = self._folded()
        with new_folder(replace(self.plan, part="").snapshot(self.at / self.plan.settings.steps)) as folder:
            _save(sae, folder)

    def _folded(self) -> TrainingSAE[Any]:
        """Return a copy of the SAE, calibrated, in the units of the activations."""
        sae = copy.deepcopy(self.trainer.sae)
        self._calibrate(sae)
        if self.trainer.activation_scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(self.trainer.activation_scaler.scaling_factor)
        return sae

    def finish(self) -> None:
        """Calibrate, fold the input scale, save the SAE in SAELens' layout, and remove the checkpoint."""
        from safetensors.torch import save_file

        trainer, plan = self.trainer, self.plan
        self._calibrate(trainer.sae)
        if trainer.activation_scaler.scaling_factor is not None:
            trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
        record = self.record()
        with new_folder(plan.folder) as folder:
            _save(trainer.sae, folder)
            sparsity_S = hooks_of(trainer.sae).in_saved_order(trainer.log_feature_sparsity)
            save_file({"sparsity": sparsity_S}, folder / "sparsity.safetensors")
            self._save_trace(folder)
            for part in ("", *find_variant(plan.name).config_class.parts):
                record_of_part = {**record, "part": part} if part else record
                (folder / part / RECORD).write_text(json.dumps(record_of_part, indent=2) + "\n")
            if self.log is not None:
                self.log.copy_to(folder)
        remove_folder(plan.checkpoint)
        if self.log is not None:
            self.log.finish()

    def record(self) -> dict[str, Any]:
        """Return what is recorded beside the weights: everything that determines them, and what they were made with."""
        from importlib.metadata import version

        plan = self.plan
        return {
            **plan.key,
            "model_revision": model_revision(plan.target.model_name),
            "text_revision": dataset_commit(plan.target.train_dataset or plan.target.dataset),
            "trained_tokens": self.trainer.sae.cfg.metadata.training_tokens,
            "seconds_of_the_last_run": round(time.time() - self.started, 1),
            "last_report": self.report,
            **self._threshold_rule(),
            "versions": {package: version(package) for package in ("sae-lens", "transformer-lens", "torch")},
        }

    def _threshold_rule(self) -> dict[str, Any]:
        """Return how the saved threshold was set; empty for an SAE without one."""
        if count := self.calibration_batches:
            tokens = sum(len(acts) for acts in list(self.last_batches)[-count:])
            return {"threshold": {"rule": "calibrated on the last tokens", "tokens": tokens}}
        rate = getattr(self.trainer.sae.cfg, "topk_threshold_lr", None)
        return {} if rate is None else {"threshold": {"rule": "running mean", "topk_threshold_lr": rate}}


def _save(sae: TrainingSAE[Any], folder: Path) -> None:
    """Save in inference form with sorted config fields: SAELens' order varies, and results depend on the bytes."""
    sae.save_inference_model(folder)
    for config in folder.rglob("cfg.json"):
        config.write_text(json.dumps(json.loads(config.read_text()), sort_keys=True))
