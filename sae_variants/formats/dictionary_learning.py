"""Folders of dictionary_learning: `ae.pt` and `config.json`.

Source: https://github.com/saprmarks/dictionary_learning, `dictionary.py` and the files in `trainers/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.json_files import read_object
from sae_variants.formats.saved import check_agrees, make_saved_config

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
        UsageError: The class is unknown, a field or a tensor is missing, or the two files contradict each other.
    """
    folder = Path(path)
    config = read_object(folder / CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise UsageError(f"{folder / CONFIG} has no section trainer, so it is not dictionary_learning's")
    name = str(trainer.get("dict_class"))
    check_name("dict_class", name, CLASSES)
    kind = CLASSES[name]
    saved = read_tensors(folder / WEIGHTS, device)
    if missing := [there for there in kind.tensors.values() if there not in saved]:
        raise UsageError(f"{folder / WEIGHTS} of a {name} has no {', '.join(missing)}, only {', '.join(saved)}")
    weights = {ours: saved[there].float() for ours, there in kind.tensors.items()}
    for ours in ("W_enc", "W_dec"):
        if kind.tensors[ours].endswith(".weight"):  # a torch Linear keeps [out, in]
            weights[ours] = weights[ours].T.contiguous()
    d_in, d_sae = weights["W_enc"].shape
    found = {"activation_dim": d_in, "dict_size": d_sae}
    if "k" in saved:
        found["k"] = int(saved["k"])
    check_agrees(folder / CONFIG, trainer, folder / WEIGHTS, found)
    fields: dict[str, Any] = {}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].expand(d_sae).contiguous()
    if kind.architecture == "topk":
        k = found.get("k", trainer.get("k"))
        if k is None:
            raise UsageError(f"{folder / CONFIG} of an AutoEncoderTopK has no k")
        fields["k"] = k
    cfg = make_saved_config(
        kind.architecture,
        d_in,
        d_sae,
        device,
        {"apply_b_dec_to_input": kind.apply_b_dec_to_input, **fields, **(cfg_overrides or {})},
        metadata_of(config),
    )
    return cfg, weights


def read_tensors(file: Path, device: str) -> dict[str, Tensor]:
    """Return the tensors of `ae.pt` by name; nothing else in it is read, because a pickle can run any code.

    Raises:
        UsageError: The file is cut short or no file of torch, or it holds other things than tensors.
    """
    import torch

    try:
        saved = torch.load(file, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises errors of a zip file, a pickle, or its own
        raise UsageError(
            f"{file} cannot be read: it is incomplete, or holds Python objects beside tensors, which may run any code"
            " and are never loaded; download it again, or ask its author for a file of tensors"
        ) from error
    if not isinstance(saved, dict):
        raise UsageError(f"{file} holds no tensors by name, as torch.save(sae.state_dict()) writes them")
    return saved


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model, hook and context size that `config.json` states."""
    trainer, buffer = config["trainer"], config.get("buffer") or {}
    layer, submodule = trainer.get("layer"), str(trainer.get("submodule_name") or "resid_post")
    end = HOOKS.get(re.sub(r"_layer_?\d+$", "", submodule))
    return {
        "model_name": trainer.get("lm_name"),
        "hook_name": f"blocks.{layer}.{end}" if end and layer is not None else None,
        "context_size": buffer.get("ctx_len") if isinstance(buffer, dict) else None,
    }
