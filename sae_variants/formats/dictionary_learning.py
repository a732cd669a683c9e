"""Folders of dictionary_learning: `ae.pt` and `config.json`.

Source: https://github.com/saprmarks/dictionary_learning, `dictionary.py` and the files in `trainers/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.formats.saved import make_saved_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG = "ae.pt", "config.json"
HOOKS = {"resid_post": "hook_resid_post", "resid_pre": "hook_resid_pre", "mlp_out": "hook_mlp_out"} | {
    "attention_out": "hook_attn_out",
    "attn_out": "hook_attn_out",
}
"""Leading part of `submodule_name` -> end of the TransformerLens hook."""


@dataclass(frozen=True)
class DictClass:
    """SAELens' equivalent of a class of dictionary_learning."""

    architecture: str
    apply_b_dec_to_input: bool = True
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Our name -> its name in `ae.pt`, beside those of `LINEAR`."""


LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias"}
MATRIX = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
GATED = {"b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
CLASSES = {
    "AutoEncoder": DictClass("standard", tensors={**LINEAR, "b_dec": "bias"}),
    "AutoEncoderNew": DictClass("standard", False, {**LINEAR, "b_dec": "decoder.bias"}),
    "AutoEncoderTopK": DictClass("topk", tensors={**LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": DictClass("jumprelu", tensors={**LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": DictClass("jumprelu", tensors={**MATRIX, "threshold": "threshold"}),
    "JumpReluAutoEncoder": DictClass("jumprelu", False, {**MATRIX, "threshold": "threshold"}),
    "GatedAutoEncoder": DictClass("gated", tensors={"W_enc": "encoder.weight", "W_dec": "decoder.weight", **GATED}),
}


def read_folder(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the weights of an SAE, as SAELens' loaders do.

    Args:
        path: Folder with `ae.pt` and `config.json`.
        device: Device of the weights.
        cfg_overrides: Config fields that replace those of the folder.

    Raises:
        UsageError: The class is unknown, or a field or a tensor is missing.
    """
    import torch

    folder = Path(path)
    trainer = read_trainer(folder)
    name = str(trainer.get("dict_class"))
    check_name("dict_class", name, CLASSES)
    kind = CLASSES[name]
    saved: dict[str, Tensor] = torch.load(folder / WEIGHTS, map_location=device, weights_only=True)
    if missing := [there for there in kind.tensors.values() if there not in saved]:
        raise UsageError(f"{folder / WEIGHTS} of a {name} has no {', '.join(missing)}, only {', '.join(saved)}")
    weights = {ours: saved[there].float() for ours, there in kind.tensors.items()}
    for ours in ("W_enc", "W_dec"):
        if kind.tensors[ours].endswith(".weight"):  # a torch Linear keeps [out, in]
            weights[ours] = weights[ours].T.contiguous()
    d_in, d_sae = weights["W_enc"].shape
    fields: dict[str, Any] = {}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].expand(d_sae).contiguous()
    if kind.architecture == "topk":
        k = trainer.get("k", saved.get("k"))
        if k is None:
            raise UsageError(f"{folder / CONFIG} of an AutoEncoderTopK has no k")
        fields["k"] = int(k)
    cfg = make_saved_config(
        kind.architecture,
        d_in,
        d_sae,
        device,
        {"apply_b_dec_to_input": kind.apply_b_dec_to_input, **fields, **(cfg_overrides or {})},
        metadata_of(folder, trainer),
    )
    return cfg, weights


def read_trainer(folder: Path) -> dict[str, Any]:
    """Return the section `trainer` of `config.json`."""
    trainer = json.loads((folder / CONFIG).read_text()).get("trainer")
    if not isinstance(trainer, dict):
        raise UsageError(f"{folder / CONFIG} has no section trainer, so it is not dictionary_learning's")
    return trainer


def metadata_of(folder: Path, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model, hook, context size and seed that `config.json` states."""
    buffer = json.loads((folder / CONFIG).read_text()).get("buffer") or {}
    layer, submodule = trainer.get("layer"), str(trainer.get("submodule_name") or "resid_post")
    end = HOOKS.get(re.sub(r"_layer_?\d+$", "", submodule))
    return {
        "model_name": trainer.get("lm_name"),
        "hook_name": f"blocks.{layer}.{end}" if end and layer is not None else None,
        "context_size": buffer.get("ctx_len"),
    }
