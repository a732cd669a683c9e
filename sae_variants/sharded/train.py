"""Training of SAEs of which each lies in several processes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.common.files import remove_folder
from sae_variants.registry.contract import TrainingHooks
from sae_variants.registry.variants import find_variant, own_variant_names
from sae_variants.sharded.job import ShardedJob, make_sharded_trainer
from sae_variants.sharded.lost import told_in_one_line
from sae_variants.sharded.ranks import WORLD, Ranks, join_ranks
from sae_variants.training.plan import Plan
from sae_variants.training.sharing import check_memory, claim_plan, is_missing
from sae_variants.training.source import open_source
from sae_variants.training.train import TrainingFailed, train_together


def check_plans(plans: list[Plan], shards: int) -> None:
    """Raise a UsageError, before any work, if an SAE cannot be trained in shards."""
    groups = int(os.environ.get(WORLD, shards)) // shards
    for plan in plans:
        width, values = plan.settings.d_sae, plan.values
        hooks = _hooks(plan.name)
        if hooks.in_shards is None:
            able = ", ".join(name for name in own_variant_names() if _hooks(name).in_shards is not None)
            raise UsageError(
                f"{plan.name} cannot be trained in shards, only {able} can: leave --shards and torchrun out"
            )
        for field, value in hooks.in_shards.items():
            if values[field] != value:
                raise UsageError(f"{field} of {plan.name} must be {value} with --shards, not {values[field]}")
        if width % shards:
            raise UsageError(f"--shards {shards} does not divide d_sae = {width}: give a divisor of it")
        if width // shards < values["k"]:
            latents = f"{width // shards} latents a shard, fewer than k = {values['k']}"
            raise UsageError(f"--shards {shards} leaves {latents}: give --shards {int(width // values['k'])} or fewer")
        window = values.get("window", 1)
        if plan.settings.batch_tokens % (groups * window):
            whole = f", each with whole windows of {window} tokens" if window > 1 else ""
            raise UsageError(
                f"batch_tokens = {plan.settings.batch_tokens} must be a multiple of {groups * window}, for the "
                f"{groups} groups of processes{whole}"
            )


def _hooks(name: str) -> type[TrainingHooks]:
    sae_class = find_variant(name).sae_class
    return sae_class if issubclass(sae_class, TrainingHooks) else TrainingHooks


def train_sharded(
    plans: list[Plan], shards: int, device: str = "cpu", force: bool = False, checkpoint_steps: int = 50
) -> None:
    """Train every plan that is not trained yet, one after another, in all processes of a torchrun.

    Args:
        plans: How each SAE is trained.
        shards: Shards of the latents; the tokens are in as many groups as there are processes for a shard.
        device: `cpu`, or `cuda` for one device a process.
        force: Whether finished SAEs are trained again.
        checkpoint_steps: Steps between checkpoints.

    Raises:
        UsageError: The target cannot be loaded.
        TrainingFailed: At the end, if some SAEs could not be trained.
    """
    ranks = join_ranks(shards, device)
    failures: dict[Path, str] = {}
    for plan in plans:
        if not ranks.agree(force or is_missing(plan)):
            continue
        with contextlib.ExitStack() as stack:
            if not ranks.agree(not ranks.is_first or claim_plan(plan, stack)):
                raise UsageError(f"{plan.title} is being trained by another command")
            if force and ranks.is_first:
                remove_folder(plan.checkpoint)
            ranks.wait()
            with told_in_one_line(ranks, plan.checkpoint):
                failures |= _train(plan, ranks, checkpoint_steps)
    if failures:
        raise TrainingFailed(failures)


def make_job(plan: Plan, d_in: int, ranks: Ranks) -> ShardedJob:
    """Return the job of this process; raise a UsageError in all of them if one has too little memory."""
    settings = plan.settings
    sizes = {"d_sae": settings.d_sae // ranks.shards, "batch_tokens": settings.batch_tokens // ranks.groups}
    part = replace(plan, settings=replace(settings, **sizes))
    ranks.refuse_together(lambda: check_memory(part, d_in, ranks.device, ranks.on_device))
    return ShardedJob(plan, make_sharded_trainer(plan, d_in, ranks))


def _train(plan: Plan, ranks: Ranks, checkpoint_steps: int) -> dict[Path, str]:
    from sae_lens.util import str_to_dtype

    source = open_source(plan, ranks.device)
    shared = ranks.share_passes(source.stream.activations, source.d_in, str_to_dtype(plan.settings.dtype))
    # a thread that makes the next buffer would mix its collectives with those of a step
    source = replace(source, stream=replace(source.stream, activations=shared, ahead_on=None))
    return train_together(
        [plan],
        source,
        ranks.device,
        checkpoint_steps,
        make_job=partial(make_job, d_in=source.d_in, ranks=ranks),
        is_shown=ranks.is_first,
    )
