"""One SAE in training: SAELens' trainer around it, its steps, its checkpoints, and the SAE that remains.

A finished SAE appears in its folder at once and whole; until then only its checkpoint exists (see `_plan`).
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import backup_of, new_folder, replace_folder
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import find_variant
from sae_variants.training.plan import RECORD, TRACE, Plan

STEPS_BETWEEN_REPORTS = 10


@dataclass
class Job:
    plan: Plan
    trainer: Any
    shown: str = ""
    """Loss, L0, explained variance and dead latents of the last report."""
    failure: str = ""
    """Why it trains no longer."""
    started: float = field(default_factory=time.time)

    @property
    def at(self) -> int:
        """Steps taken."""
        return self.trainer.n_training_steps

    @property
    def is_done(self) -> bool:
        return self.at >= self.plan.settings.steps

    @property
    def runs(self) -> bool:
        return not self.is_done and not self.failure

    @property
    def title(self) -> str:
        return f"{self.plan.label} (seed {self.plan.settings.seed})"

    def step(self, batch: Any) -> None:
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

    def _report(self, output: Any) -> None:
        import torch

        with torch.no_grad():
            loss = output.loss.item()
            if loss != loss or loss in (float("inf"), float("-inf")):
                self.failure = f"training {self.title} diverged at step {self.at} (loss {loss}): lower --learning-rate"
            x, error = output.sae_in, (output.sae_in - output.sae_out).pow(2).sum()
            explained = 1 - (error / (x - x.mean(0)).pow(2).sum().clamp(min=1e-12)).item()
            said: dict[str, Any] = {
                "l0": lambda: output.feature_acts.bool().sum(-1).float().mean().item(),
                "dead": lambda: self.trainer.dead_neurons.float().mean().item(),
                **output.metrics,
            }
            l0, dead = (value() if callable(value) else value for value in (said["l0"], said["dead"]))
        phase = f"phase {said['phase']} " if "phase" in said else ""
        self.shown = f"{self.plan.name}: {phase}loss {loss:.2f} L0 {l0:.1f} EV {explained:.3f} dead {dead:.0%}"

    def save_checkpoint(self) -> None:
        partial = self.plan.checkpoint.with_suffix(".partial")
        with new_folder(partial):
            self.trainer.save_checkpoint("state", base_path=partial)
            self._save_trace(partial)
        replace_folder(self.plan.checkpoint, partial)

    def _save_trace(self, folder: Path) -> None:
        import numpy as np

        if trace := hooks_of(self.trainer.sae).trace:
            np.savez_compressed(folder / TRACE, **{name: values.cpu().numpy() for name, values in trace.items()})

    def resume(self) -> None:
        """Goes on from the last whole checkpoint, if there is one."""
        old = backup_of(self.plan.checkpoint)
        if not self.plan.checkpoint.exists() and old.exists():
            old.rename(self.plan.checkpoint)
        state = self.plan.checkpoint / "state"
        if not state.is_dir():
            return
        try:
            self.trainer.load_trainer_state(state)
            self.trainer.sae.load_weights_from_checkpoint(state)
        except Exception as error:
            where = self.plan.checkpoint
            raise UsageError(
                f"the checkpoint {where} cannot be read ({type(error).__name__}): remove it to start anew"
            ) from error

    def save_snapshot(self) -> None:
        """The SAE as it is now, in inference form."""
        sae = copy.deepcopy(self.trainer.sae)
        if self.trainer.activation_scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(self.trainer.activation_scaler.scaling_factor)
        folder = replace(self.plan, part="").snapshot(self.at / self.plan.settings.steps)
        partial = folder.with_name(folder.name + ".partial")
        with new_folder(partial):
            _save(sae, partial)
        replace_folder(folder, partial)

    def finish(self) -> None:
        """Folds the input scale into the weights, saves in SAELens' layout, removes the checkpoint."""
        from importlib.metadata import version

        from safetensors.torch import save_file

        trainer, made = self.trainer, self.plan
        if trainer.activation_scaler.scaling_factor is not None:
            trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
        partial = made.folder.with_name(made.folder.name + ".partial")
        record = {
            **made.key,
            "trained_tokens": trainer.sae.cfg.metadata.training_tokens,
            "seconds_of_the_last_run": round(time.time() - self.started, 1),
            "last_report": self.shown,
            "versions": {package: version(package) for package in ("sae-lens", "transformer-lens", "torch")},
        }
        with new_folder(partial):
            _save(trainer.sae, partial)
            save_file({"sparsity": trainer.log_feature_sparsity}, partial / "sparsity.safetensors")
            self._save_trace(partial)
            for part in ("", *find_variant(made.name).config_class.parts):
                own = {**record, "part": part} if part else record
                (partial / part / RECORD).write_text(json.dumps(own, indent=2) + "\n")
        replace_folder(made.folder, partial)
        shutil.rmtree(made.checkpoint, ignore_errors=True)


def _save(sae: Any, folder: Path) -> None:
    """In inference form, its fields in one order: SAELens' differs between processes, and results go by the bytes."""
    sae.save_inference_model(folder)
    for config in folder.rglob("cfg.json"):
        config.write_text(json.dumps(json.loads(config.read_text()), sort_keys=True))
