"""Checks of a saved SAE's config: every field that decides what the SAE computes is honoured or refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.json_files import read_object
from sae_variants.common.values import check_type

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALED = "expected_average_only_in"
UNFOLDED = {SCALED: "--norm-scaling-factor", "covariance_whitening": ""}
"""Normalisations that SAELens folds into the weights when it saves -> option of `convert` that folds them."""

CHECKED = {"k", "metadata", "device", "normalize_activations", "reshape_activations"}
"""Fields whose values are not checked against SAELens' annotation: they are checked, or set, elsewhere."""
METADATA: dict[str, Any] = {
    "model_name": str | None,
    "hook_name": str | None,
    "hook_name_out": str | None,
    "hook_head_index": int | None,
    "prepend_bos": bool | None,
    "seqpos_slice": list[int | None] | None,
    "model_from_pretrained_kwargs": dict | None,
    "training_architecture": str | None,
    "training_architecture_details": dict | None,
    "finetuning_scaling_factor": bool | None,
}
"""Types of the fields beside those of SAELens' config classes that decide how an SAE is used."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `cfg.json` of a folder.

    Raises:
        UsageError: It is not a JSON object, or its metadata is not.
    """
    cfg = read_object(folder / CONFIG)
    if not isinstance(cfg.get("metadata", {}), dict):
        raise UsageError(f"cannot load the SAE in {folder}: metadata in {CONFIG} is {cfg['metadata']}, not fields")
    return cfg


def check_config(cfg: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Check that SAELens honours every field of a config that decides what the SAE computes.

    Args:
        cfg: Content of a `cfg.json` of SAELens 3 or later.
        ignored: Normalisations that the caller folds into the weights.

    Raises:
        UsageError: A field is missing, wrong, or would be ignored.
    """
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
    from sae_lens.registry import SAE_CLASS_REGISTRY

    check_name("architecture", str(cfg.get("architecture", "standard")), SAE_CLASS_REGISTRY)
    for name in ("d_in", "d_sae", "dtype"):
        if cfg.get(name) is None:
            raise UsageError(f"{CONFIG} has no {name}")
    for name in ("d_in", "d_sae"):
        if type(cfg[name]) is not int or cfg[name] < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, not {cfg[name]!r}")
    for place in (cfg, cfg.get("metadata", {})):  # SAELens 3 to 5 kept the metadata among the other fields
        for name, hint in METADATA.items():
            check_type(name, place.get(name), hint)
    try:
        converted = handle_config_defaulting(dict(cfg))
    except KeyError as error:
        raise UsageError(f"activation_fn_kwargs has no {error}") from error
    if "architecture" not in converted:
        raise UsageError(f"{CONFIG} has no architecture")
    _check_activation(cfg, converted["architecture"])
    hints = get_type_hints(SAE_CLASS_REGISTRY[converted["architecture"]][1])
    for name in sorted((converted.keys() & hints.keys()) - CHECKED):
        check_type(name, converted[name], hints[name])
    takes_k = "k" in hints
    if cfg.get("k") is not None and not takes_k:
        raise UsageError(f"k = {cfg['k']} would be ignored: the architecture {converted['architecture']} has no k")
    k = converted.get("k")
    if takes_k and (k is None or type(k) not in (int, hints["k"]) or not 0 < k <= cfg["d_sae"]):
        whole = ", a whole number" if hints["k"] is int else ""
        raise UsageError(f"k must be above 0 and at most d_sae = {cfg['d_sae']}{whole}, not {k!r}")
    normalisation = converted.get("normalize_activations", "none")
    if normalisation in UNFOLDED and normalisation not in ignored:
        option = UNFOLDED[normalisation]
        mend = f"fold it by `python -m sae_variants convert` with {option}" if option else "fold it before saving"
        raise UsageError(f"normalize_activations is {normalisation}, which is not folded into the weights: {mend}")
    if (reshape := converted.get("reshape_activations", "none")) not in ("none", "hook_z"):
        raise UsageError(f"reshape_activations must be none or hook_z, not {reshape!r}")


def _check_activation(cfg: dict[str, Any], architecture: str) -> None:
    """Check the activation function that SAELens 3 to 5 wrote beside the architecture.

    Args:
        cfg: Content of a `cfg.json`.
        architecture: The architecture that SAELens loads.
    """
    activation = cfg.get("activation_fn") or cfg.get("activation_fn_str") or "relu"
    kwargs = cfg.get("activation_fn_kwargs") or {}
    if activation not in ("relu", architecture):
        without_k = " without k in activation_fn_kwargs" if activation == "topk" and not kwargs.get("k") else ""
        raise UsageError(f"activation_fn {activation}{without_k} would be ignored: {architecture} is loaded")
    if kwargs.get("signed"):
        raise UsageError("signed in activation_fn_kwargs would be ignored")


def why_no_autoencoder(sae: SAE[Any]) -> str | None:
    """Return why an SAE does not encode and reconstruct single activation vectors of a hook; None if it does."""
    cfg, metadata = sae.cfg, sae.cfg.metadata
    architecture = cfg.architecture()
    hook_out, d_out = metadata.hook_name_out, getattr(cfg, "d_out", None)
    if "transcoder" in architecture or d_out is not None or hook_out not in (None, metadata.hook_name):
        to = f", from {metadata.hook_name} to {hook_out}" if hook_out else ""
        return f"is a transcoder ({architecture}{to}), not an autoencoder"
    if architecture == "temporal":
        return "is SAELens' TemporalSAE, whose codes depend on the tokens before; single activations are evaluated here"
    if metadata.hook_head_index is not None:
        return f"was trained on head {metadata.hook_head_index} of {metadata.hook_name} alone"
    return None
