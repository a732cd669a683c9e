"""What a language model does when something is taken out of its activations.

Shapes: C contexts, T tokens, P places (a context and a position) that are looked at, D = d_in, V words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_variants.common.console import progress
from sae_variants.language_model.hooks import hook_activations


@dataclass(frozen=True)
class Effect:
    """Of one ablation, mean over places."""

    kl: float
    """Kullback-Leibler divergence of the next token, clean to ablated, nats."""
    top: float
    """|change of the log-probability| of the token that the clean run holds most likely, nats."""


class Ablation:
    """A few contexts of one model: the logits of the clean run at some places, and how ablations change them."""

    def __init__(self, model: Any, hook_name: str, tokens_CT: Tensor, places_CT: Tensor) -> None:
        self.model, self.hook_name = model, hook_name
        self.tokens_CT, self.places_CT = tokens_CT.to(model.cfg.device), places_CT.to(model.cfg.device)
        self.clean_PV = self._logits(lambda acts: acts)

    def _logits(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits [P, V] at the places, of a run whose activations [C, T, D] at the hook are changed."""
        model = self.model
        hooks = [(self.hook_name, lambda acts, hook: change(acts))]
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            residual_CTD = model(self.tokens_CT, stop_at_layer=model.cfg.n_layers, prepend_bos=False)
            chosen_1PD = residual_CTD[self.places_CT][None]
            normed_1PD = model.ln_final(chosen_1PD) if hasattr(model, "ln_final") else chosen_1PD
            logits_PV = model.unembed(normed_1PD)[0].float()
        cap = getattr(model.cfg, "output_logits_soft_cap", 0) or 0
        return cap * torch.tanh(logits_PV / cap) if cap > 0 else logits_PV

    def without(self, written_CTD: Tensor) -> Tensor:
        """Change of the logits [P, V] when these vectors are taken away, less the mean of each row."""
        change_PV = self._logits(lambda acts: acts - written_CTD.to(acts)) - self.clean_PV
        return change_PV - change_PV.mean(-1, keepdim=True)

    def effect(self, change_PV: Tensor) -> Effect:
        clean, ablated = self.clean_PV.log_softmax(-1), (self.clean_PV + change_PV).log_softmax(-1)
        kl = (clean.exp() * (clean - ablated)).sum(-1)
        top = clean.argmax(-1, keepdim=True)
        return Effect(kl.mean().item(), (ablated - clean).gather(-1, top).abs().mean().item())


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Makes a model of lower precision compute in float32, by the same weights: it would round small changes away."""
    dtype = model.cfg.dtype
    if dtype == torch.float32:
        yield
        return
    model.to(torch.float32, print_details=False)
    try:
        yield
    finally:
        model.to(dtype, print_details=False)


def projection_share(part_PV: Tensor, whole_PV: Tensor) -> float:
    """How much of one change of the logits is in another: its projection on it, in units of it; mean over places."""
    size = whole_PV.pow(2).sum(-1)
    found = (part_PV * whole_PV).sum(-1)[size > 0] / size[size > 0]
    return found.mean().item() if len(found) else float("nan")


def trace_sampled(
    sae: Any,
    lower: Any,
    parent_L: Tensor | None,
    model: Any,
    hook_name: str,
    ids_CT: Tensor,
    fires_CTU: Tensor,
    *,
    n_latents: int,
    per_latent: int,
    random_directions: int,
    seed: int,
) -> list[dict[str, Any]]:
    """What `trace` says of latents drawn at random.

    Args:
        fires_CTU: where the latents fire; those are drawn that do in enough contexts, and have children if any do.
        per_latent: contexts of each.
    """
    generator = torch.Generator().manual_seed(seed)
    in_context_CU = fires_CTU.any(1)
    often_U = in_context_CU.sum(0) >= min(per_latent, len(ids_CT))
    if parent_L is not None:
        often_U &= torch.bincount(parent_L.clamp(min=0), minlength=len(often_U)) > 0
    candidates = often_U.nonzero().squeeze(1)
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:n_latents]].tolist()
    rows = []
    for number, latent in enumerate(progress(chosen, "latents")):
        contexts = in_context_CU[:, latent].nonzero().squeeze(1)
        contexts = contexts[torch.randperm(len(contexts), generator=generator)[:per_latent]]
        of = {"children": latent, **({"other_children": chosen[number - 1]} if len(chosen) > 1 else {})}
        rows.append(
            trace_latent(
                sae, lower, parent_L, model, hook_name, ids_CT[contexts], fires_CTU[contexts, :, latent], latent, of,
                random_directions, generator,
            )
        )  # fmt: skip
    return rows


def trace_latent(
    sae: Any, lower: Any, parent_L: Tensor | None, model: Any, hook_name: str, ids_CT: Tensor, places_CT: Tensor,
    latent: int, children_of: dict[str, int], random_directions: int, generator: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    """What happens without a latent, without a random direction of its norm, and without children.

    Args:
        lower, parent_L: lower level and each of its latents' parent, or None where the SAE has one level.
        places_CT: where the latent fires.
        children_of: latents whose children are taken away, by what the row shall call that.
    """
    with torch.no_grad():
        x_CTD = hook_activations(model, hook_name)(ids_CT)
        acts_CT = sae.encode(x_CTD)[..., latent] * places_CT.to(x_CTD.device)
        row_D = sae.W_dec[latent]
    ablation = Ablation(model, hook_name, ids_CT, places_CT)
    change = ablation.without(acts_CT[..., None] * row_D)
    own = ablation.effect(change)
    randoms = []
    for _ in range(random_directions):
        direction_D = torch.randn(len(row_D), generator=generator).to(row_D)
        direction_D *= row_D.norm() / direction_D.norm()
        randoms.append(ablation.effect(ablation.without(acts_CT[..., None] * direction_D)))
    row = {
        "latent": latent, "places": int(places_CT.sum()), "kl": own.kl, "top_change": own.top,
        "kl_random": sum(effect.kl for effect in randoms) / len(randoms),
        "top_change_random": sum(effect.top for effect in randoms) / len(randoms),
    }  # fmt: skip
    if lower is not None and parent_L is not None:
        with torch.no_grad():
            lower_CTL = lower.encode(x_CTD) * places_CT.to(x_CTD.device)[..., None]
        for name, of in children_of.items():
            is_child_L = (parent_L == of).to(x_CTD.device)
            theirs = ablation.without((lower_CTL * is_child_L) @ lower.W_dec.detach())
            row |= {f"{name}_share": projection_share(theirs, change), f"kl_{name}": ablation.effect(theirs).kl}
    return row


AVERAGED = (
    "kl", "kl_random", "top_change", "top_change_random", "kl_children", "children_share", "other_children_share"
)  # fmt: skip


def summarize_traces(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means over latents, with 95 % intervals by bootstrap over them."""
    if not rows:
        return {"traced": 0.0}
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(rows), size=(2000, len(rows)))
    found: dict[str, Any] = {"traced": float(len(rows))}
    columns = {
        name: np.nan_to_num([row[name] for row in rows], posinf=0.0, neginf=0.0) for name in AVERAGED if name in rows[0]
    }
    columns["kl_excess"] = columns["kl"] - columns["kl_random"]  # of the same latents in the same places
    found |= {f"{name}_median": float(np.median(columns[name])) for name in ("kl", "kl_random")}
    for name, values in columns.items():
        found[name] = float(values.mean())
        if name in ("kl", "kl_random", "kl_excess", "children_share"):
            found[f"{name}_low"], found[f"{name}_high"] = np.quantile(values[draws].mean(1), (0.025, 0.975)).tolist()
    found["kl_ratio"] = found["kl"] / found["kl_random"] if found["kl_random"] > 0 else None
    return found
