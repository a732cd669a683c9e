"""A target's held-out text as tokens, and the activations at its hook.

Shapes: C contexts, T tokens in a context, D = d_in.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from sae_variants.common.console import progress
from sae_variants.language_model.contexts import read_contexts
from sae_variants.language_model.stored import target_activations
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase


def special_mask(tokens: Tensor, model: HookedTransformer) -> Tensor:
    """Mask the special tokens, such as BOS; any shape, which the mask has too."""
    import torch
    from sae_lens.util import get_special_token_ids

    return torch.isin(tokens, torch.tensor(get_special_token_ids(tokenizer_of(model))))


def heldout_tokens(target: Target, model: HookedTransformer, n_contexts: int, context_size: int) -> Tensor:
    """Read held-out contexts as token ids, at most as many as the text has.

    Args:
        target: names the text and the hook.
        model: the target's language model.
        n_contexts: largest number of contexts.
        context_size: tokens in a context, BOS included.

    Returns:
        [C, T] token ids: BOS first, BOS between documents.
    """
    import torch

    contexts = islice(read_contexts(target, model, context_size, "heldout"), n_contexts)
    return torch.stack(list(contexts))


def heldout_activations(
    target: Target, model: HookedTransformer, n_contexts: int, context_size: int, per_batch: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    """Compute the activations of held-out contexts, a batch at a time.

    Args:
        target: names the text and the hook.
        model: the target's language model.
        n_contexts: largest number of contexts.
        context_size: tokens in a context, BOS included.
        per_batch: contexts in a batch.

    Yields:
        [C, T - 1, D] activations without BOS, the first token; [C, T - 1] mask of special tokens.
    """
    yield from activations_of(heldout_tokens(target, model, n_contexts, context_size), target, model, per_batch)


def activations_of(
    ids_CT: Tensor, target: Target, model: HookedTransformer, per_batch: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    """Compute the activations of given contexts, a batch at a time.

    Args:
        ids_CT: token ids, BOS first.
        target: names the hook.
        model: the target's language model.
        per_batch: contexts in a batch.

    Yields:
        [C, T - 1, D] activations without BOS, the first token; [C, T - 1] mask of special tokens.
    """
    at_hook = target_activations(target, model, contexts_per_pass=per_batch)
    for batch_CT in progress(ids_CT.split(per_batch), "contexts"):
        acts_CTD = at_hook(batch_CT)
        yield acts_CTD[:, 1:], special_mask(batch_CT, model)[:, 1:].to(acts_CTD.device)


def tokenizer_of(model: HookedTransformer) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model that is loaded with one, as `load_model` does."""
    assert model.tokenizer is not None
    return model.tokenizer


def bos_id(model: HookedTransformer) -> int:
    """The id of the token that begins every context."""
    bos = tokenizer_of(model).bos_token_id
    assert isinstance(bos, int)
    return bos


def prepend_bos(ids_CT: Tensor, model: HookedTransformer) -> Tensor:
    """Put BOS before contexts that lack it, so that they can be given to the model again.

    Returns:
        Token ids [C, T + 1].
    """
    from torch.nn.functional import pad

    return pad(ids_CT, (1, 0), value=bos_id(model))
