"""What SAEs train on: the stream of activations of a language model on text, or of a synthetic model."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.worker import device_share
from sae_variants.training.log import heldout_measure, synthetic_measure
from sae_variants.training.plan import Plan

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from sae_variants.language_model.target import Target
    from sae_variants.training.windows import Batch, WindowStream

Measure = Callable[["SAE[Any]"], dict[str, float | None]]
"""Measures an SAE in inference form on held-out activations."""


@dataclass(frozen=True)
class Source:
    """Activations on which the plans of a group train."""

    hook_name: str
    """Hook that gives them."""
    d_in: int
    """Their width."""
    stream: WindowStream
    """Their stream."""
    measure: Callable[[], Measure]
    """Returns the function that measures an SAE for the log of its training."""
    begins_with_bos: Callable[[], bool] = lambda: True
    """Whether the first context begins with BOS, which rows that are tokenised already may lack; read with a batch."""
    reserve: Callable[[int], None] = lambda steps: None
    """Checks, before the first of so many steps, that what will be kept of the stream fits on the disk."""

    def batches(self, start: int, last: int) -> Iterator[Batch]:
        """Return batch `start` and all following of the stream, after a check of the first."""
        from sae_variants.training.windows import checked

        return checked(self.stream.batches(start, last), self.hook_name)


def open_source(plan: Plan, device: str) -> Source:
    """Load the model of a plan's target and open the stream of its activations.

    Args:
        plan: A plan; those that share its target and its stream settings share the source.
        device: Device of the model.

    Raises:
        UsageError: The model cannot be loaded, or a setting does not fit it.
    """
    return _open_synthetic(plan, device) if plan.target.synthetic else _open_language_model(plan, device)


def _open_language_model(plan: Plan, device: str) -> Source:
    from sae_lens.util import get_special_token_ids

    from sae_variants.language_model.contexts import read_contexts
    from sae_variants.language_model.hooks import hook_width
    from sae_variants.language_model.load import load_model
    from sae_variants.language_model.stored import target_activations
    from sae_variants.training.windows import WindowStream

    target, settings = plan.target, plan.settings
    model = load_model(target.model_name, device, target.dtype)
    d_in = hook_width(model, target.hook_name)
    if settings.context_size > model.cfg.n_ctx:
        raise UsageError(f"context_size = {settings.context_size} exceeds the model's {model.cfg.n_ctx} positions")
    first_ids: list[int] = []

    def contexts() -> Iterator[Tensor]:
        for context in read_contexts(target, model, settings.context_size):
            if not first_ids:
                first_ids.append(int(context[0]))
            yield context

    activations = target_activations(target, model, settings.dtype)
    stream = WindowStream(
        contexts=contexts,
        activations=activations,
        special_ids=tuple(get_special_token_ids(model.tokenizer)),  # type: ignore[arg-type]
        ahead_on=device if is_made_ahead(target, device) else None,
        **_of_stream(plan),
    )
    bos_id: Any = model.tokenizer.bos_token_id  # type: ignore[union-attr]
    measure = partial(heldout_measure, plan, model)
    reserve = partial(_reserve, stream, activations, d_in, target.is_local)
    return Source(target.hook_name, d_in, stream, measure, lambda: first_ids in ([], [bos_id]), reserve)


def is_made_ahead(target: Target, device: str) -> bool:
    """Return whether the next activations are made while SAEs train: read from a store, by a GPU, or by idle cores."""
    import torch

    return target.activations is not None or device.startswith("cuda") or usable_cores() >= 2 * torch.get_num_threads()


def usable_cores() -> float:
    """Return the number of cores on which this process may run, shared with the other workers of a launch here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores * device_share()


def _reserve(stream: WindowStream, activations: object, d_in: int, is_local: bool, steps: int) -> None:
    """Print how many activations a training will keep, if they are kept; raise a UsageError if they do not fit."""
    from sae_variants.language_model.stored import StoredActivations

    if not isinstance(activations, StoredActivations):
        return
    n_contexts, free = stream.buffers_of(steps) * stream.buffer_contexts, activations.bytes_free
    size = activations.bytes_of_context(stream.context_size, d_in)
    missing, already = n_contexts * size, "" if activations.is_empty else ", less what is there already"
    if missing > free and (is_local or not activations.is_empty):  # the text may be shorter, or be there already
        missing = activations.n_missing(itertools.islice(stream.contexts(), n_contexts)) * size
        already = ""
    if missing > free:
        raise UsageError(
            f"--activations: up to {missing / 1e9:.1f} GB would be added, but the disk of {activations.folder} has "
            f"{free / 1e9:.1f} GB left: give a folder on another disk, or leave the option out"
        )
    print(f"activations in {activations.folder}: up to {missing / 1e9:.2f} GB are added{already}", file=sys.stderr)


def _open_synthetic(plan: Plan, device: str) -> Source:
    from sae_lens.util import str_to_dtype

    from sae_variants.synthetic.model import load_synthetic
    from sae_variants.training.windows import WindowStream

    target, settings = plan.target, plan.settings
    assert target.synthetic is not None
    data = load_synthetic(target.synthetic, device, f"[synthetic] of {target.name}")
    dtype = str_to_dtype(settings.dtype)
    stream = WindowStream(
        contexts=lambda: data.contexts(settings.context_size),
        activations=lambda numbers_CT: data.training_activations(numbers_CT, settings.seed).to(dtype),
        special_ids=(),
        **_of_stream(plan),
    )
    return Source(target.hook_name, data.d_in, stream, partial(synthetic_measure, plan, data))


def _of_stream(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "context_size": settings.context_size,
        "window": settings.stream_window,
        "batch_rows": settings.batch_tokens,
        "buffer_contexts": settings.buffer_contexts,
        "seed": settings.seed,
    }
