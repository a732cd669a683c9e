"""SAEs in the layouts of other libraries, each with the formula of its own forward pass in plain PyTorch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, S, K = 32, 64, 4
Formula = Callable[[Tensor], Tensor]


def tensors(seed: int = 0, d: int = D, s: int = S) -> dict[str, Tensor]:
    """W_enc [D, S], W_dec [S, D] of no particular norm, and biases that matter."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d, s), "W_dec": (s, d), "b_enc": (s,), "b_dec": (d,), "threshold": (s,), "r_mag": (s,)}
    return {name: torch.randn(shape, generator=g) * 0.3 for name, shape in shapes.items()}


def top(pre: Tensor, k: int = K) -> Tensor:
    values, at = pre.topk(k)
    return torch.zeros_like(pre).scatter(-1, at, values)


def dictionary_learning(folder: Path, name: str, **trainer) -> Formula:
    w = tensors()
    w["threshold"] = w["threshold"].abs()
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    matrices = {key: w[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
    one, k = torch.tensor(0.4), torch.tensor(K)
    gates = {"decoder_bias": w["b_dec"], "r_mag": w["r_mag"], "gate_bias": w["b_enc"], "mag_bias": w["threshold"]}
    saved = {
        "AutoEncoder": {**linear, "bias": w["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": {**linear, "b_dec": w["b_dec"], "k": k, "threshold": one},
        "BatchTopKSAE": {**linear, "b_dec": w["b_dec"], "k": k, "threshold": one},
        "MatryoshkaBatchTopKSAE": {**matrices, "k": k, "threshold": one, "group_sizes": torch.tensor([16, S - 16])},
        "JumpReluAutoEncoder": {**matrices, "threshold": w["threshold"]},
        "GatedAutoEncoder": {**linear, **gates},
    }[name]
    if name == "GatedAutoEncoder":
        del saved["encoder.bias"]

    def forward(x: Tensor) -> Tensor:
        bias = 0 if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else w["b_dec"]
        pre = (x - bias) @ w["W_enc"] + w["b_enc"]
        codes = {
            "AutoEncoderTopK": lambda: top(pre.relu()),
            "BatchTopKSAE": lambda: pre.relu() * (pre.relu() > one),
            "MatryoshkaBatchTopKSAE": lambda: pre.relu() * (pre.relu() > one),
            "JumpReluAutoEncoder": lambda: (pre * (pre > w["threshold"])).relu(),
            "GatedAutoEncoder": lambda: (
                (pre > 0) * (w["r_mag"].exp() * ((x - bias) @ w["W_enc"]) + w["threshold"]).relu()
            ),
        }.get(name, pre.relu)()
        return codes @ w["W_dec"] + w["b_dec"]

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({key: value.clone() for key, value in saved.items()}, folder / "ae.pt")
    settings = {"dict_class": name, "activation_dim": D, "dict_size": S, "layer": 1, "k": K} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"ctx_len": 128}}))
    return forward


def sparsify(folder: Path, **cfg) -> Formula:
    w = tensors()
    folder.mkdir(parents=True, exist_ok=True)
    names = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file({key: value.contiguous().clone() for key, value in names.items()}, folder / "sae.safetensors")
    settings = {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": S, "k": K}
    (folder / "cfg.json").write_text(json.dumps({**settings, "d_in": D, "transcode": False, **cfg}))

    def forward(x: Tensor) -> Tensor:
        pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        codes = pre * (top(pre.abs()) > 0) if cfg.get("signed") else top(pre.relu())
        return codes @ w["W_dec"] + w["b_dec"]

    return forward


def params_npz(d: int = D, s: int = S) -> tuple[bytes, Formula]:
    w = tensors(1, d, s)
    w["threshold"] = w["threshold"].abs()
    del w["r_mag"]
    file = io.BytesIO()
    np.savez(file, **{key: value.numpy() for key, value in w.items()})

    def forward(x: Tensor) -> Tensor:
        pre = x @ w["W_enc"] + w["b_enc"]
        return ((pre > w["threshold"]) * pre.relu()) @ w["W_dec"] + w["b_dec"]

    return file.getvalue(), forward


def gemma_scope(folder: Path) -> Formula:
    folder.mkdir(parents=True, exist_ok=True)
    content, forward = params_npz()
    (folder / "params.npz").write_bytes(content)
    return forward


OLD = {
    "d_in": D,
    "d_sae": S,
    "dtype": "torch.float32",
    "device": "cuda",
    "hook_point": "blocks.1.hook_resid_post",
    "hook_point_layer": 1,
    "hook_point_head_index": None,
    "activation_fn_str": "relu",
    "normalize_activations": "none",
    "prepend_bos": True,
    "context_size": 128,
    "finetuning_scaling_factor": False,
}
V6 = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": S,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.1.0"},
}


def saelens(folder: Path, cfg: dict, extra: dict[str, Tensor] | None = None) -> Formula:
    w = tensors()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    kept = {key: w[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec")} | (extra or {})
    save_file(kept, folder / "sae_weights.safetensors")
    k = (cfg.get("activation_fn_kwargs") or {}).get("k") or cfg.get("k")

    def forward(x: Tensor) -> Tensor:
        pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        return (top(pre, k) if k else pre) @ w["W_dec"] + w["b_dec"]

    return forward
