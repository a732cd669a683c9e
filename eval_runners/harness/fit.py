"""Load an SAE for a target, after checking that the SAE, the language model and the text fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eval_runners.contract.located import LocatedSAE
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer


def load_for_target(
    located: LocatedSAE, target: Target, model: HookedTransformer, device: str, context_size: int | None = None
) -> SAE[Any]:
    """Load an SAE and check that it, and contexts of that size, fit the target.

    Raises:
        UsageError: the SAE cannot be loaded, has another width or hook, or was trained on another model; or the model,
            or the held-out text, is shorter than a context.
    """
    sae = located.load(device)
    check_fits(sae, located.label, target, model)
    if context_size is not None:
        check_context(context_size, target, model)
    return sae


def check_fits(sae: SAE[Any], label: str, target: Target, model: HookedTransformer) -> None:
    """Check that an SAE has the target's width, hook and model, and fill in what its metadata lacks.

    Raises:
        UsageError: names the SAE and what differs.
    """
    from sae_variants.language_model.hooks import hook_width

    d_in, metadata = hook_width(model, target.hook_name), sae.cfg.metadata
    if sae.cfg.d_in != d_in:
        raise UsageError(f"{label} has d_in = {sae.cfg.d_in}, but {target.hook_name} of {target.name} is {d_in} wide")
    hook, trained_on = metadata.hook_name, metadata.model_name
    if hook is not None and hook != target.hook_name:
        raise UsageError(f"{label} was trained at {hook}, not at {target.hook_name} of {target.name}")
    if trained_on is not None and not _same_model(trained_on, target.model_name):
        raise UsageError(f"{label} was trained on {trained_on}, not on {target.model_name}")
    metadata.hook_name, metadata.model_name = target.hook_name, target.model_name
    if metadata.prepend_bos is None:
        metadata.prepend_bos = True


def _same_model(name: str, other: str) -> bool:
    """Return whether two names, with or without owner or revision, or TransformerLens' aliases, are of one model."""
    from sae_variants.language_model.hub import official_name

    return official_name(name).split("/")[-1] == official_name(other).split("/")[-1]


def check_context(context_size: int, target: Target, model: HookedTransformer) -> None:
    """Check that the model and the held-out text hold a context of that many tokens.

    Raises:
        UsageError: names the option and the limit.
    """
    from sae_variants.language_model.contexts import read_contexts

    if context_size < 3:
        raise UsageError(f"--context-size must be at least 3, BOS and two tokens, not {context_size}")
    if context_size > model.cfg.n_ctx:
        raise UsageError(f"--context-size {context_size} exceeds the model's {model.cfg.n_ctx} positions")
    if target.is_local and next(read_contexts(target, model, context_size, "heldout"), None) is None:
        raise UsageError(f"the held-out text of {target.title} is shorter than one context of {context_size} tokens")
