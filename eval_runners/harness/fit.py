"""Load an SAE for a target, after checking that the SAE, the language model and the text fit each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eval_runners.contract.located import LocatedSAE
from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import is_local_model
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata
    from transformer_lens import HookedTransformer


def load_for_target(
    located: LocatedSAE, target: Target, model: Any, device: str, context_size: int | None = None
) -> SAE[Any]:
    """Load an SAE and check that it, and contexts of that size, fit the target.

    Args:
        located: the SAE.
        target: what it is evaluated on.
        model: the target's language model, or its synthetic model.
        device: device of the weights.
        context_size: tokens in a context, where the evaluation reads contexts.

    Raises:
        UsageError: the SAE cannot be loaded, has another width or hook, or was trained on another model; or the model,
            or the held-out text, is shorter than a context.
    """
    sae = located.load(device)
    check_fits(sae, located.label, target, model)
    if context_size is not None and not target.synthetic:
        check_context(context_size, target, model)
    return sae


def check_fits(sae: SAE[Any], label: str, target: Target, model: Any) -> None:
    """Check that an SAE has the target's width, hook and model, and fill in what its metadata lacks.

    Raises:
        UsageError: names the SAE and what differs.
    """
    from sae_variants.language_model.hooks import hook_width

    d_in, metadata = model.d_in if target.synthetic else hook_width(model, target.hook_name), sae.cfg.metadata
    if sae.cfg.d_in != d_in:
        raise UsageError(f"{label} has d_in = {sae.cfg.d_in}, but {target.hook_name} of {target.name} is {d_in} wide")
    hook, trained_on = metadata.hook_name, metadata.model_name
    if hook is not None and hook != target.hook_name:
        raise UsageError(f"{label} was trained at {hook}, not at {target.hook_name} of {target.name}")
    if trained_on is not None and not is_model_of(trained_on, target):
        raise UsageError(f"{label} was trained on {trained_on}, not on {target.model_name}")
    metadata.hook_name, metadata.model_name = target.hook_name, target.model_name
    if metadata.prepend_bos is None:
        metadata.prepend_bos = True
    for remark in _remarks(metadata):
        print(f"warning: {label} {remark}", file=sys.stderr)


def is_model_of(name: str, target: Target) -> bool:
    """Whether a name, such as `EleutherAI/pythia-70m-deduped` or an alias, is of the target's language model."""
    return _short_name(name) in _names_of(target)


def _names_of(target: Target) -> set[str]:
    """Names of a target's language model: its official name, and for a local folder also the folder's."""
    names = {_short_name(target.model_name)}
    return names | {target.title.partition(" at ")[0]} if is_local_model(target.model_name) else names


def _short_name(model_name: str) -> str:
    """Return a model's name on the Hub without owner and revision, whichever of TransformerLens' aliases is given."""
    from sae_variants.language_model.hub import official_name

    return official_name(model_name).split("/")[-1]


def _remarks(metadata: SAEMetadata) -> Iterator[str]:
    """What an SAE's metadata asks of its use that the evaluations do not do."""
    positions: Any = metadata.seqpos_slice
    if positions and any(bound is not None for bound in positions):
        yield f"was trained on the positions {list(positions)} (seqpos_slice) only; it is evaluated on all"
    options: Any = metadata.model_from_pretrained_kwargs or {}
    if changed := {name: value for name, value in options.items() if value}:
        yield f"was trained on a language model loaded with {changed}; here it is loaded without processing"


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


CONTEXTS = ("context_size", "context_length", "llm_context_size", "seq_len")
"""Names of settings with the length of a context."""


def check_positions(target: Target, settings: Any) -> None:
    """Check that the model has a position for every token of a context, as far as its config says.

    Args:
        target: the language model.
        settings: of an evaluator.

    Raises:
        UsageError: names the option and the limit.
    """
    from sae_variants.cli.fields import to_option
    from sae_variants.language_model.limits import model_limits

    sizes = {name: size for name in CONTEXTS if (size := getattr(settings, name, None)) is not None}
    if target.synthetic or not sizes or (limit := model_limits(target.model_name).n_ctx) is None:
        return
    for name, size in sizes.items():
        if size > limit:
            raise UsageError(f"{to_option(name)} {size} exceeds the model's {limit} positions")


def check_context_early(target: Target, settings: Any) -> None:
    """Check what the model's config, its tokenizer and the text alone can tell, before anything is trained.

    Args:
        target: the language model and the held-out text.
        settings: of an evaluator. With `context_size` it reads held-out text.

    Raises:
        UsageError: names the option and the limit.
    """
    from sae_variants.language_model.contexts import cut_contexts
    from sae_variants.language_model.limits import model_limits

    check_positions(target, settings)
    if target.synthetic:
        return
    limits, context_size = model_limits(target.model_name), getattr(settings, "context_size", None)
    if context_size is None or limits.tokenizer is None or not target.is_local or context_size < 3:
        return
    d_vocab = limits.d_vocab or len(limits.tokenizer)
    if next(cut_contexts(target, limits.tokenizer, d_vocab, context_size, "heldout"), None) is None:
        raise UsageError(f"the held-out text of {target.title} is shorter than one context of {context_size} tokens")
