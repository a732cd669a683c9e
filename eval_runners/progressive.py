"""progressive: how good is the reconstruction from fewer latents, or more, and which latents come and go in training?

Explained variance on held-out text when of each token only the k' latents are kept that write most (activation times
norm of the decoder row). A TopK SAE is asked for k' above its own k as well, which other SAEs do not have: Multi-TopK
is trained for it. Gao et al., arXiv 2406.04093, 2.4 and 5.2.

And of an SAE that is trained here, looked at during its training: the share of latents that fire on none of these
tokens, and the shares of those that do not fire at one look but at the next (recovered), and the reverse (lost).

Shapes: N tokens, D = d_in, S = d_sae.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Evaluation, Metric

if TYPE_CHECKING:
    from torch import Tensor

NAME = "progressive"
CATEGORIES = ("kept", "training")
KEPT = (1, 2, 4, 8, 16, 32, 64, 128)
LOOKS = (0.25, 0.5, 0.75)
"""Shares of the training."""
_AT = tuple(f"{look:.0%}".rstrip("%") for look in (*LOOKS, 1.0))
_TRAINING = (
    *((f"dead_{at}", f"share of latents that do not fire after {at} % of the training") for at in _AT),
    *((f"recovered_{at}", f"share that fire after {at} %, and did not a quarter before") for at in _AT[1:]),
    *((f"lost_{at}", f"share that do not fire after {at} %, and did a quarter before") for at in _AT[1:]),
)


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 128
    """Held-out contexts that are reconstructed."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    training: bool = True
    """Whether an SAE that is trained here is looked at during its training."""


METRICS = (
    *(
        Metric(
            f"ev_{k}", f"explained variance from the largest {k}", "higher", f"eval_result_metrics.kept.ev_{k}",
            short=f"EV, k' = {k}", curve=("Explained variance from fewer latents", "latents kept", float(k)),
        )
        for k in KEPT
    ),
    *(
        Metric(
            name, title, "neither", f"eval_result_metrics.training.{name}",
            short=name.replace("_", " ") if name in ("dead_25", "dead_100", "recovered_50", "recovered_100") else "",
        )
        for name, title in _TRAINING
    ),
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    names = (*(f"ev_{k}" for k in KEPT), *(name for name, _ in _TRAINING))
    return make_output_class(NAME, EvalConfig, CATEGORIES, names)


def snapshots(config: EvalConfig) -> tuple[float, ...]:
    return LOOKS if config.training else ()


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str, found: Any = None) -> Evaluation:
    """Explained variances; and what came and went, where the SAE is trained here."""
    import torch

    from eval_runners.data.heldout import heldout_activations
    from eval_runners.harness.find_sae import locate_folder
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.envelope import make_output
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    parts = heldout_activations(target, model, config.n_contexts, config.context_size)
    x_ND = torch.cat([x_CTD[~special_CT] for x_CTD, special_CT in parts])
    values: dict[str, dict[str, Any]] = {"kept": explained(sae, x_ND), "training": {n: None for n, _ in _TRAINING}}
    plan = getattr(found, "plan", None)
    if config.training and plan is not None and not plan.lacks(LOOKS):
        looks = [fires(locate_folder(plan.snapshot(look)).load(device), x_ND) for look in LOOKS]
        values["training"] = came_and_went([*looks, fires(sae, x_ND)])
    best = max(value for value in values["kept"].values())
    failures = [] if best > 0 else ["the reconstruction explains no variance"]
    return Evaluation(make_output(NAME, config, finite_or_none(values), sae, target), {}, failures)


@contextlib.contextmanager
def of_more_latents(sae: Any, k: int) -> Iterator[None]:
    """Lets a TopK SAE have k latents per token, as far as it has so many."""
    from sae_lens.saes.topk_sae import TopK

    if type(sae.activation_fn) is not TopK:
        yield
        return
    with mock.patch.object(sae.activation_fn, "k", min(k, sae.cfg.d_sae)):
        yield


def explained(sae: Any, x_ND: Tensor) -> dict[str, float]:
    """`ev_k` for every k of `KEPT`."""
    import torch

    errors = dict.fromkeys(KEPT, 0.0)
    norm_S = sae.W_dec.detach().norm(dim=1)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # then activations are in units of what they write
        norm_S = norm_S * 0 + 1
    with torch.no_grad(), of_more_latents(sae, max(KEPT)):
        for x in x_ND.split(1024):
            acts = sae.encode(x)
            places = (acts * norm_S).topk(min(max(KEPT), acts.shape[1]), dim=-1).indices
            for k in KEPT:
                kept = torch.zeros_like(acts).scatter(-1, places[:, :k], acts.gather(-1, places[:, :k]))
                errors[k] += (sae.decode(kept) - x).double().pow(2).sum().item()
    total = (x_ND.double() - x_ND.double().mean(0)).pow(2).sum().item()
    return {f"ev_{k}": 1 - error / total for k, error in errors.items()}


def fires(sae: Any, x_ND: Tensor) -> Tensor:
    """Mask [S] of the latents that fire on any token."""
    import torch

    with torch.no_grad():
        return torch.stack([(sae.encode(x) > 0).any(0) for x in x_ND.split(1024)]).any(0)


def came_and_went(looks: list[Tensor]) -> dict[str, float]:
    """The numbers of the category `training` from which latents [S] fire at each look."""
    found = {f"dead_{at}": 1 - fires_S.float().mean().item() for at, fires_S in zip(_AT, looks, strict=True)}
    for at, before, after in zip(_AT[1:], looks, looks[1:], strict=False):
        found[f"recovered_{at}"] = (after & ~before).float().mean().item()
        found[f"lost_{at}"] = (before & ~after).float().mean().item()
    return found


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
