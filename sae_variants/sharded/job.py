"""A training in several processes: its start, its checkpoints, which any number of processes can continue, and its end.

Every process writes its own part, in the safetensors files of torch.distributed's checkpoints; at the end they become
one file in SAELens' layout, part by part. No process ever holds the whole SAE.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from sae_variants.common.errors import UsageError
from sae_variants.common.files import partial_of, remove_folder, replace_folder, restore_folder
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.saved_config import CONFIG, WEIGHTS
from sae_variants.sharded.latents import ENCODER, REPLICATED, LatentShards
from sae_variants.sharded.lost import has_lost_another
from sae_variants.sharded.ranks import Ranks
from sae_variants.training.job import SHARDED_STATE, Job
from sae_variants.training.plan import RECORD, Plan
from sae_variants.training.trainer import make_trainer, weight_seed

if TYPE_CHECKING:
    from sae_lens.training.sae_trainer import SAETrainer
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
ROWS_OF_ENCODER = f"{ENCODER}.T"
"""Name of the encoder in a checkpoint if it is kept transposed, as the optimiser then has it."""
WHOLE = (*REPLICATED, "topk_threshold", "inner_thresholds_T")
"""Weights and buffers that every process has whole."""


def axis_of_latents(name: str, ndim: int) -> int | None:
    """Return the axis of a weight, a buffer or its moments that belongs to the latents; None if it has none."""
    if name.partition(".")[0] in WHOLE:
        return None
    return 0 if name.startswith(("W_dec", ROWS_OF_ENCODER)) else ndim - 1


def make_sharded_trainer(plan: Plan, d_in: int, ranks: Ranks) -> SAETrainer[Any, Any]:
    """Return SAELens' trainer around this process's shard of a fresh SAE, whose weights are those of one process.

    Args:
        plan: How the whole SAE is trained.
        d_in: Width of the activations.
        ranks: This process among the others.
    """
    import torch

    shards = LatentShards(ranks)
    part = replace(plan, settings=replace(plan.settings, d_sae=plan.settings.d_sae // ranks.shards))
    trainer = make_trainer(part, d_in, ranks.device)
    sae: Any = trainer.sae
    for module in sae.modules():  # the SAE, and an activation function that looks at the whole batch
        if hasattr(module, "shards"):
            module.shards = shards
    kept = dict(sae.named_parameters())  # which the optimiser knows
    torch.manual_seed(weight_seed(plan))
    for _ in range(shards.index + 1):  # the rows of a shard follow those of the shard before it
        sae.initialize_weights()
    fresh = {name: parameter.data for name, parameter in sae.named_parameters()}
    for name, parameter in kept.items():
        parameter.data.copy_(fresh[name])
        setattr(sae, name, parameter)
    shards.after_backward = lambda: shards.finish_gradients(sae)
    return trainer


class ShardedJob(Job):
    """A plan with the trainer of this process's shard."""

    @property
    def shards(self) -> LatentShards:
        """The collectives of the SAE."""
        return self.trainer.sae.shards  # type: ignore[return-value]

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors of the training by name."""
        import torch

        trainer, sae = self.trainer, self.trainer.sae
        state: dict[str, Tensor] = {
            **{name: buffer.view(buffer.shape or 1) for name, buffer in sae.named_buffers()},
            "act_freq_scores": trainer.act_freq_scores,
            "n_forward_passes_since_fired": trainer.n_forward_passes_since_fired,
        }
        optimised = trainer.optimizer.param_groups[0]["params"]
        for (name, parameter), own in zip(sae.named_parameters(), optimised, strict=True):
            name = ROWS_OF_ENCODER if name == ENCODER and not parameter.is_contiguous() else name
            state[name] = own.data
            moments = trainer.optimizer.state[own]
            if not moments:
                moments["step"] = torch.zeros((), device=own.device)
                moments.update({moment: torch.zeros_like(own) for moment in MOMENTS})
            state |= {f"{name}.{moment}": moments[moment] for moment in MOMENTS}
        return state

    @override
    def save_checkpoint(self) -> None:
        import torch

        trainer, folder = self.trainer, partial_of(self.plan.checkpoint)
        self._prepare(folder)
        state = self._state()
        state["act_freq_scores"] = self.shards.over_tokens(state["act_freq_scores"])
        since = "n_forward_passes_since_fired"
        state[since] = self.shards.least(state[since])
        self._save(state, folder / SHARDED_STATE, consolidated=False)
        if self.shards.ranks.is_first:
            numbers = {
                "n_training_steps": trainer.n_training_steps,
                "n_training_samples": trainer.n_training_samples,
                "n_frac_active_samples": trainer.n_frac_active_samples,
                "scaling_factor": trainer.activation_scaler.scaling_factor,
                "torch": torch.__version__,
            }
            (folder / f"{SHARDED_STATE}.json").write_text(json.dumps(numbers, indent=2))
            replace_folder(self.plan.checkpoint, folder)
        self.shards.ranks.wait()

    @override
    def resume(self) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        folder, trainer = self.plan.checkpoint / SHARDED_STATE, self.trainer
        if self.shards.ranks.is_first:
            restore_folder(self.plan.checkpoint)
        if not self.shards.ranks.agree(self.plan.checkpoint.is_dir()):
            return
        if not folder.is_dir():
            raise UsageError(
                f"the checkpoint {self.plan.checkpoint} is of one process: continue without torchrun and --shards, or "
                "remove it to start anew"
            )
        try:
            numbers = json.loads(folder.with_name(f"{SHARDED_STATE}.json").read_text())
            state = self._state()
            with warnings.catch_warnings(action="ignore"):
                placed = {name: self._placed(values, name) for name, values in state.items()}
                load(placed, storage_reader=HuggingFaceStorageReader(str(folder)))
            trainer.n_training_steps, trainer.n_training_samples, trainer.n_frac_active_samples = (
                numbers[name] for name in ("n_training_steps", "n_training_samples", "n_frac_active_samples")
            )
            trainer.activation_scaler.scaling_factor = numbers["scaling_factor"]
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            if has_lost_another(error):
                raise
            raise self._unreadable(error) from error
        if self.shards.group:  # the first group has the counts of all
            trainer.act_freq_scores.zero_()
        for moments in trainer.optimizer.state.values():
            moments["step"].fill_(trainer.n_training_steps)
        with warnings.catch_warnings(action="ignore"):  # of a scheduler that steps before the optimiser
            for _ in range(trainer.n_training_steps):
                trainer.lr_scheduler.step()

    @override
    def finish(self) -> None:
        trainer, plan, shards = self.trainer, self.plan, self.shards
        sae: Any = trainer.sae
        self._calibrate(sae)
        if trainer.activation_scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.act_freq_scores = shards.over_tokens(trainer.act_freq_scores)
        trainer.n_forward_passes_since_fired = shards.least(trainer.n_forward_passes_since_fired)
        trainer.set_final_sae_metadata()
        metadata = sae.cfg.metadata
        metadata.l0 = float(shards.over_latents(trainer.feature_sparsity.sum()))
        metadata.num_dead_features = int(shards.over_latents(trainer.dead_neurons.sum()))
        weights = sae.state_dict()
        sae.process_state_dict_for_saving_inference(weights)
        folder = partial_of(plan.folder)
        self._prepare(folder)
        weights[ENCODER] = weights[ENCODER].contiguous()
        self._save(weights, folder / "weights", consolidated=True)
        sparsity = hooks_of(sae).in_saved_order(trainer.log_feature_sparsity)
        self._save({"sparsity": sparsity}, folder / "sparsity", consolidated=True)
        if shards.ranks.is_first:
            for made, name in (("weights", WEIGHTS), ("sparsity", "sparsity.safetensors")):
                (file,) = (folder / made).glob("*.safetensors")
                file.rename(folder / name)
                shutil.rmtree(folder / made)
            whole = replace(sae.cfg, d_sae=plan.settings.d_sae)
            config = whole.get_inference_sae_cfg_dict()
            (folder / CONFIG).write_text(json.dumps(config, sort_keys=True))
            (folder / RECORD).write_text(json.dumps(self.record(), indent=2) + "\n")
            replace_folder(plan.folder, folder)
            remove_folder(plan.checkpoint)
        shards.ranks.wait()

    def _prepare(self, folder: Path) -> None:
        """Make an empty folder, once, before any process writes to it."""
        if self.shards.ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.shards.ranks.wait()

    def _save(self, state: Mapping[str, Tensor], folder: Path, consolidated: bool) -> None:
        """Write this process's part of tensors; with `consolidated`, the first one then joins the parts of all."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        placed = {name: self._placed(values, name) for name, values in state.items()}
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=consolidated)
        with warnings.catch_warnings(action="ignore"):
            save(placed, storage_writer=writer)

    def _placed(self, values: Tensor, name: str) -> Any:
        """Return this process's part of a tensor as a part of the whole."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        axis = axis_of_latents(name, values.ndim)
        where = Replicate() if axis is None else Shard(axis)
        return DTensor.from_local(values, self.shards.ranks.mesh, (Replicate(), where), run_check=False)
