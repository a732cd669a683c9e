"""Folders of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`.

SAELens 6.54 has a loader for them that transposes `W_dec` once too often, subtracts b_dec by another rule and rounds
to bfloat16, so the formula is written here.

Source: https://github.com/EleutherAI/sparsify, `sparse_coder.py` and `fused_encoder.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.json_files import read_object
from sae_variants.formats.saved import check_agrees, make_saved_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def read_folder(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the weights of an SAE, as SAELens' loaders do.

    Args:
        path: Folder with `cfg.json` and `sae.safetensors`.
        device: Device of the weights.
        cfg_overrides: Config fields that replace those of the folder.

    Raises:
        UsageError: It is a transcoder, has another activation than TopK, or a tensor is missing.
    """
    from safetensors.torch import load_file

    folder = Path(path)
    settings = read_object(folder / CONFIG)
    saved = load_file(folder / WEIGHTS, device=device)
    if settings.get("transcode") or settings.get("skip_connection") or "W_skip" in saved:
        raise UsageError(f"{folder} holds a transcoder of sparsify, not an SAE")
    activation = settings.get("activation", "topk")
    if activation != "topk":
        raise UsageError(f"{folder / CONFIG} has the activation {activation!r}; only topk can be loaded")
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    if missing := [there for there in names.values() if there not in saved]:
        raise UsageError(f"{folder / WEIGHTS} has no {', '.join(missing)}, only {', '.join(saved)}")
    weights = {ours: saved[there].float() for ours, there in names.items()}
    weights["W_enc"] = weights["W_enc"].T.contiguous()
    d_in, d_sae = weights["W_enc"].shape
    check_agrees(folder / CONFIG, settings, folder / WEIGHTS, {"d_in": d_in, "num_latents": d_sae})
    if "k" not in settings:
        raise UsageError(f"{folder / CONFIG} has no k")
    cfg = make_saved_config(
        # A signed coder chooses the k largest magnitudes and keeps their signs.
        "abstopk" if settings.get("signed") else "topk",
        d_in,
        d_sae,
        device,
        {"k": settings["k"], "rescale_acts_by_decoder_norm": False, **(cfg_overrides or {})},
        {"hook_name": hook_of(folder.resolve().name), "model_name": model_beside(folder)},
    )
    return cfg, weights


def hook_of(folder_name: str) -> str | None:
    """Return the TransformerLens hook of a module that sparsify names its folders after; None if there is none."""
    if match := re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)(\.mlp)?", folder_name):
        return f"blocks.{match[1]}.{'hook_mlp_out' if match[2] else 'hook_resid_post'}"
    return "hook_embed" if folder_name == "embed_tokens" else None


def model_beside(folder: Path) -> str | None:
    """Return the model that the training's `config.json`, in the folder above, names."""
    try:
        model = read_object(folder.resolve().parent / "config.json").get("model")
    except UsageError:
        return None
    return model if isinstance(model, str) else None
