"""SAELens' trainer around one variant: metadata, Adam's options, and the learning rate of each step."""

from __future__ import annotations

from typing import Any

from sae_variants.registry.build import build
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import find_variant
from sae_variants.training.plan import Plan


def make_trainer(made: Plan, d_in: int, device: str) -> Any:
    """SAELens' trainer around a fresh SAE."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = made.settings
    dead_after_steps = max(1, settings.dead_after_tokens // settings.batch_tokens)
    filled_in = {
        "total_steps": settings.steps,
        "dead_after_steps": dead_after_steps,
        "dead_after_tokens": settings.dead_after_tokens,
    }
    sae = build(
        made.name,
        d_in=d_in,
        seed=settings.seed,
        device=device,
        dtype=settings.dtype,
        normalize_activations=settings.normalize_activations,
        **{name: filled_in[name] for name in find_variant(made.name).from_settings},
        **made.sized,
    )
    sae.cfg.metadata.model_name = made.target.model_name
    sae.cfg.metadata.hook_name = made.target.hook_name
    sae.cfg.metadata.context_size = settings.context_size
    sae.cfg.metadata.prepend_bos = True
    sae.cfg.metadata.dataset_path = made.key["text"]
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
        dead_feature_window=dead_after_steps,
        feature_sampling_window=max(2, settings.steps // 4),
        logger=LoggingConfig(log_to_wandb=False),
    )
    found = SAETrainer(cfg, sae.to(device), iter(()))
    for group in found.optimizer.param_groups:
        group.update(hooks_of(sae).adam_options)
    _turn_transposed(found.optimizer)
    _scale_learning_rate(found)
    return found


def _turn_transposed(optimizer: Any) -> None:
    """Gives the optimiser the transpose of weights that are stored so: of others its gradients would be copied."""
    import torch

    params = optimizer.param_groups[0]["params"]
    stored = {at: p for at, p in enumerate(params) if not p.is_contiguous() and p.mT.is_contiguous()}
    for at, p in stored.items():
        params[at] = torch.nn.Parameter(p.data.mT)  # the same memory

    def before(*_: Any) -> None:
        for at, p in stored.items():
            params[at].grad, p.grad = None if p.grad is None else p.grad.mT, None

    if stored:
        optimizer.register_step_pre_hook(before)


def _scale_learning_rate(trainer: Any) -> None:
    """Lets the SAE scale the learning rate of each step; the schedule, which goes on from the last, never sees it."""

    hooks = hooks_of(trainer.sae)

    def before(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["scheduled_lr"] = group["lr"]
            group["lr"] *= hooks.learning_rate_scale(trainer.n_training_steps)

    def after(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group.pop("scheduled_lr")

    trainer.optimizer.register_step_pre_hook(before)
    trainer.optimizer.register_step_post_hook(after)
