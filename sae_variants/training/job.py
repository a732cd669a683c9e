"""One SAE in training: its steps, its checkpoints, its snapshots, and the SAE that remains.

A finished SAE appears in its folder at once and complete; until then only its checkpoint exists (see `plan`).
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import backup_of, new_folder, remove_folder
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import find_variant
from sae_variants.training.plan import RECORD, TRACE, Plan

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
    from sae_lens.training.sae_trainer import SAETrainer

    from sae_variants.training.windows import Batch

STEPS_BETWEEN_REPORTS = 10


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

    @property
    def title(self) -> str:
        """The plan's label with its seed."""
        return f"{self.plan.label} (seed {self.plan.settings.seed})"

    def step(self, batch: Batch) -> None:
        """Take a training step on a batch; a step that fails sets `failure`."""
        trainer = self.trainer
        trainer.maybe_reset_sparsity()
        hooks_of(trainer.sae).special_N = batch.special_N
        try:
            output = trainer.step(batch.acts_ND)
        except ValueError as error:
            self.failure = f"{self.title} cannot be trained with these settings: {error}"
            return
        trainer.n_training_steps += 1
        if trainer.n_training_steps % STEPS_BETWEEN_REPORTS == 1 or self.is_done:
            self._report(output)

    def _report(self, output: TrainStepOutput) -> None:
        import torch

        with torch.no_grad():
            loss = output.loss.item()
            if loss != loss or loss in (float("inf"), float("-inf")):
                self.failure = f"training {self.title} diverged at step {self.at} (loss {loss}): lower --learning-rate"
            x, error = output.sae_in, (output.sae_in - output.sae_out).pow(2).sum()
            explained = 1 - (error / (x - x.mean(0)).pow(2).sum().clamp(min=1e-12)).item()
            metrics: dict[str, Any] = {
                "l0": lambda: output.feature_acts.bool().sum(-1).float().mean().item(),
                "dead": lambda: self.trainer.dead_neurons.float().mean().item(),
                **output.metrics,
            }
            l0, dead = (value() if callable(value) else value for value in (metrics["l0"], metrics["dead"]))
        phase = f"phase {metrics['phase']} " if "phase" in metrics else ""
        self.report = f"{self.plan.name}: {phase}loss {loss:.2f} L0 {l0:.1f} EV {explained:.3f} dead {dead:.0%}"

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
        previous = backup_of(self.plan.checkpoint)
        if not self.plan.checkpoint.exists() and previous.exists():
            previous.rename(self.plan.checkpoint)
        state = self.plan.checkpoint / "state"
        if not state.is_dir():
            return
        try:
            self.trainer.load_trainer_state(state)
            self.trainer.sae.load_weights_from_checkpoint(state)
        except Exception as error:
            reason = f"the checkpoint {self.plan.checkpoint} cannot be read ({type(error).__name__})"
            raise UsageError(f"{reason}: remove it to start anew") from error

    def save_snapshot(self) -> None:
        """Save the present SAE in inference form."""
        sae = copy.deepcopy(self.trainer.sae)
        if self.trainer.activation_scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(self.trainer.activation_scaler.scaling_factor)
        with new_folder(replace(self.plan, part="").snapshot(self.at / self.plan.settings.steps)) as folder:
            _save(sae, folder)

    def finish(self) -> None:
        """Fold the input scale into the weights, save the SAE in SAELens' layout, and remove the checkpoint."""
        from importlib.metadata import version

        from safetensors.torch import save_file

        trainer, plan = self.trainer, self.plan
        if trainer.activation_scaler.scaling_factor is not None:
            trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
        record = {
            **plan.key,
            "trained_tokens": trainer.sae.cfg.metadata.training_tokens,
            "seconds_of_the_last_run": round(time.time() - self.started, 1),
            "last_report": self.report,
            "versions": {package: version(package) for package in ("sae-lens", "transformer-lens", "torch")},
        }
        with new_folder(plan.folder) as folder:
            _save(trainer.sae, folder)
            save_file({"sparsity": trainer.log_feature_sparsity}, folder / "sparsity.safetensors")
            self._save_trace(folder)
            for part in ("", *find_variant(plan.name).config_class.parts):
                record_of_part = {**record, "part": part} if part else record
                (folder / part / RECORD).write_text(json.dumps(record_of_part, indent=2) + "\n")
        remove_folder(plan.checkpoint)


def _save(sae: TrainingSAE[Any], folder: Path) -> None:
    """Save in inference form with sorted config fields: SAELens' order varies, and results depend on the bytes."""
    sae.save_inference_model(folder)
    for config in folder.rglob("cfg.json"):
        config.write_text(json.dumps(json.loads(config.read_text()), sort_keys=True))
