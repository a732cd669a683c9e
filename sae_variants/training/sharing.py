"""Which plans train together, and how processes share them.

Plans whose SAEs see the same activations train together, as many as fit in memory. Each is claimed by the process that
trains it, so that several commands, on several hosts too, share the work and train no SAE twice.
"""

from __future__ import annotations

import contextlib
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import claim_owner, claimed
from sae_variants.common.memory import free_memory
from sae_variants.common.worker import device_share
from sae_variants.registry.build import make_config
from sae_variants.training.plan import Plan

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


def is_missing(plan: Plan, snapshots: tuple[float, ...] = ()) -> bool:
    """Return whether a plan is not trained yet, or lacks one of the snapshots, given as shares of the training."""
    return not plan.is_trained or bool(plan.lacks(snapshots))


def by_stream(plans: list[Plan]) -> list[list[Plan]]:
    """Return the plans in groups that share a stream of activations."""
    groups: dict[tuple[Any, ...], list[Plan]] = {}
    for plan in plans:
        source = (plan.key["model"], plan.target.dtype, plan.target.hook_name, plan.key["text"])
        groups.setdefault((*source, *plan.settings.stream), []).append(plan)
    return list(groups.values())


def claim_plan(plan: Plan, stack: contextlib.ExitStack) -> bool:
    """Reserve a plan for this process until the stack exits; return False if another process has it."""
    from filelock import Timeout

    try:
        stack.enter_context(claimed(plan.folder, timeout=0))
    except Timeout:
        return False
    except OSError as error:
        raise UsageError(f"cannot write to {plan.folder.parent}: {error.strerror}; give another --trained") from error
    return True


def wait_for_plan(plan: Plan) -> None:
    """Wait until the process that trains a plan has finished, or has died."""
    if owner := claim_owner(plan.folder):
        print(f"{plan.title} is being trained by {owner}: waiting for it")
    with claimed(plan.folder):
        pass


def training_bytes(plan: Plan, d_in: int, device: str) -> tuple[int, int]:
    """Return the memory of weights, gradients and Adam's two moments, and that of a step, at least."""
    cfg = make_config(plan.name, d_in=d_in, **plan.sized)
    return 4 * cfg.n_weights * BYTES[plan.settings.dtype], cfg.step_bytes(plan.settings.batch_tokens, device)


def check_memory(plan: Plan, d_in: int, device: str, processes: int = 1) -> None:
    """Raise a UsageError, before any step, if the training of a plan cannot fit in the free memory of a device.

    Args:
        plan: The plan, or the part of it that a process has.
        d_in: Width of the activations.
        device: The device.
        processes: How many processes of that size share the device.
    """
    needed, free = sum(training_bytes(plan, d_in, device)) * processes, free_memory(device)
    if needed > free:
        parts = f"{processes} shards " if processes > 1 else ""
        raise UsageError(
            f"training {parts}with d_sae = {plan.settings.d_sae} and d_in = {d_in} needs {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free: give a smaller --d-sae or --batch-tokens"
        )


def split_by_memory(plans: list[Plan], d_in: int, device: str) -> list[list[Plan]]:
    """Split plans into batches that need at most half of this process's free memory, with at least one plan each."""
    room = free_memory(device) * device_share() / 2
    batches: list[list[Plan]] = [[]] if plans else []
    used = 0
    for plan in plans:
        needed, _ = training_bytes(plan, d_in, device)
        if batches[-1] and used + needed > room:
            batches.append([])
            used = 0
        batches[-1].append(plan)
        used += needed
    return batches
