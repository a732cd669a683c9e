"""A target's held-out text as tokens, and the activations at its hook.

Shapes: C contexts, T tokens, D = d_in.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from sae_variants.common.console import progress
from sae_variants.language_model.contexts import read_contexts
from sae_variants.language_model.hooks import hook_activations
from sae_variants.language_model.target import Target


def special_mask(tokens: Any, model: Any) -> Any:
    """Which of the tokens [...] are special ones, such as BOS."""
    import torch
    from sae_lens.util import get_special_token_ids

    return torch.isin(tokens, torch.tensor(get_special_token_ids(model.tokenizer)))


def heldout_tokens(target: Target, model: Any, n_contexts: int, context_size: int) -> Any:
    """Token ids [C, T] of held-out contexts: BOS first, BOS between documents."""
    import torch

    contexts = islice(read_contexts(target, model, context_size, "heldout"), n_contexts)
    return torch.stack(list(contexts))


def heldout_activations(
    target: Target, model: Any, n_contexts: int, context_size: int, per_batch: int = 16
) -> Iterator[tuple[Any, Any]]:
    """Activations [C, T, D] of held-out contexts without BOS, their first token; mask [C, T] of special tokens."""
    yield from activations_of(heldout_tokens(target, model, n_contexts, context_size), target, model, per_batch)


def activations_of(ids_CT: Any, target: Target, model: Any, per_batch: int = 16) -> Iterator[tuple[Any, Any]]:
    """The same of given contexts."""
    at_hook = hook_activations(model, target.hook_name, contexts_per_pass=per_batch)
    for batch_CT in progress(ids_CT.split(per_batch), "contexts"):
        acts_CTD = at_hook(batch_CT)
        yield acts_CTD[:, 1:], special_mask(batch_CT, model)[:, 1:].to(acts_CTD.device)
