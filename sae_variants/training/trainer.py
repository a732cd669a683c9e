"""SAELens' trainer around one variant: metadata, options of Adam, and the learning rate of each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_variants.common.hashing import hash_seed
from sae_variants.registry.build import build
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import find_variant
from sae_variants.training.plan import RATE, Plan
from sae_variants.training.rounding import round_steps

if TYPE_CHECKING:
    from sae_lens.training.sae_trainer import SAETrainer
    from torch.optim import Optimizer


def make_trainer(plan: Plan, d_in: int, device: str) -> SAETrainer[Any, Any]:
    """Return SAELens' trainer around a fresh SAE.

    Args:
        plan: How the SAE is trained.
        d_in: Width of the activations.
        device: Device of the SAE.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = plan.settings
    raised: dict[str, Any] = {} if plan.raised_rate is None or RATE in plan.given else {RATE: plan.raised_rate}
    sae: Any = build(
        plan.name,
        d_in=d_in,
        seed=weight_seed(plan),
        device=device,
        dtype=settings.dtype,
        normalize_activations=settings.normalize_activations,
        **settings.filled_in(find_variant(plan.name).from_settings),
        **(plan.sized | raised),
    )
    hooks_of(sae).is_ours = True
    sae.cfg.metadata.model_name = plan.target.model_name
    sae.cfg.metadata.hook_name = plan.target.hook_name
    sae.cfg.metadata.context_size = settings.context_size
    sae.cfg.metadata.model_from_pretrained_kwargs = {}  # SAELens' `multiple_evals` unpacks it
    sae.cfg.metadata.dataset_path = plan.key["text"]
    sae.cfg.metadata.training_tokens = settings.steps * settings.batch_tokens if sae.cfg.learns else 0
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
        dead_feature_window=settings.dead_after_steps,
        feature_sampling_window=max(2, settings.steps // 4),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg, sae.to(device), iter(()))
    for group in trainer.optimizer.param_groups:
        group.update(hooks_of(sae).adam_options)
    _optimize_transposed(trainer.optimizer)
    _scale_learning_rate(trainer)
    if settings.dtype == "bfloat16":
        round_steps(trainer.optimizer, settings.seed)
    return trainer


def weight_seed(plan: Plan) -> int:
    """Return the seed of the initial weights.

    The directions of a synthetic model are drawn from its own seed, as the rows of an SAE are; from the same seed both
    could be the same numbers, and the SAE would start at the truth.
    """
    seed = plan.settings.seed
    return hash_seed(["weights", seed]) if plan.target.synthetic else seed


def _optimize_transposed(optimizer: Optimizer) -> None:
    """Optimise the transpose of every weight whose transpose is contiguous, which avoids a copy of its gradient."""
    import torch

    params = optimizer.param_groups[0]["params"]
    transposed = {i: p for i, p in enumerate(params) if not p.is_contiguous() and p.mT.is_contiguous()}
    for i, p in transposed.items():
        params[i] = torch.nn.Parameter(p.data.mT)  # the same memory

    def move_gradients(*_: Any) -> None:
        for i, p in transposed.items():
            params[i].grad, p.grad = None if p.grad is None else p.grad.mT, None

    if transposed:
        optimizer.register_step_pre_hook(move_gradients)


def _scale_learning_rate(trainer: SAETrainer[Any, Any]) -> None:
    """Let the SAE scale the learning rate of each step.

    The scheduler computes each rate from the one before and must not see the scaled one, so it is restored.
    """
    hooks = hooks_of(trainer.sae)

    def scale(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["scheduled_lr"] = group["lr"]
            group["lr"] *= hooks.learning_rate_scale(trainer.n_training_steps)

    def restore(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group.pop("scheduled_lr")

    trainer.optimizer.register_step_pre_hook(scale)
    trainer.optimizer.register_step_post_hook(restore)
