"""composition: are upper latents made of their children?

Of each upper latent of a two-level SAE: how much of the variance of its activation its best 1, 3 and 5 children explain
together, by least squares, fitted on one half of the contexts and scored on the other (R²); a child is a lower latent
whose parent it is, and the best are those that correlate most with it on the first half. Beside it the same of another
upper latent's children, and of the best lower latents, whoever's children they are. And the cosine of its decoder row
with the sum of its children's rows, weighted as it writes to them.

Shapes: N tokens, D = d_in, L lower latents, U upper latents, P of them looked at, K = 5 lower ones of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Direction, Evaluation, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "composition"
ONLY = f"{NAME} is for SAEs of two levels, such as hierarchical"
CATEGORIES = ("children", "another", "any")
KS = (1, 3, 5)
MOST = max(KS)


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 256
    """Held-out contexts that are read, half of them to fit on."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    n_min: int = 10
    """An upper latent counts if it fires on at least so many tokens in each half."""
    most: int = 1024
    """Upper latents that are looked at, at most, drawn at random from those that count."""
    seed: int = 0
    """Seed of that draw."""


_BETTER: dict[str, Direction] = {"children": "higher", "another": "neither", "any": "neither"}
_TITLES = {"children": "its children", "another": "another's children", "any": "any lower latents"}
_OF_CHILDREN: tuple[tuple[str, str, Direction, str], ...] = (
    ("cosine", "decoder cosine with its children's sum", "higher", "decoder cosine"),
    ("size", "children of an upper latent that has any", "neither", ""),
    ("childless", "share of upper latents without a child that fires", "lower", "childless"),
    ("latents", "upper latents looked at", "neither", ""),
)
METRICS = (
    *(
        Metric(
            f"{category}.r2_{k}", f"R² from the best {k} of {title}", _BETTER[category],
            f"eval_result_metrics.{category}.r2_{k}",
            short=f"R², {k} of {title}" if category == "children" or k == 1 else "",
        )
        for category, title in _TITLES.items()
        for k in KS
    ),
    *(
        Metric(name, title, better, f"eval_result_metrics.children.{name}", short=short)
        for name, title, better, short in _OF_CHILDREN
    ),
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    names = tuple(dict.fromkeys(metric.name.rpartition(".")[2] for metric in METRICS))
    return make_output_class(NAME, EvalConfig, CATEGORIES, names)


def refuses(plan: Any, config: EvalConfig) -> str:
    from sae_variants.registry.variants import find_variant
    from sae_variants.two_level.config import TwoLevelTrainingSAEConfig

    is_one = issubclass(find_variant(plan.name).config_class, TwoLevelTrainingSAEConfig) and not plan.part
    return "" if is_one else ONLY


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Means over upper latents; one without children counts with an R² and a cosine of 0."""
    from eval_runners.data.heldout import heldout_activations
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.envelope import make_output
    from sae_variants.common.values import finite_or_none
    from sae_variants.two_level.saved import TwoLevelSAE, lower_level_of

    require_finite_weights(sae)
    if not isinstance(sae, TwoLevelSAE):
        raise UsageError(ONLY)
    if config.n_min < 1:
        raise UsageError(f"--n-min must be at least 1, not {config.n_min}")
    halves: list[list[Tensor]] = [[], []]
    contexts = 0
    for x_CTD, special_CT in heldout_activations(target, model, config.n_contexts, config.context_size):
        for x_TD, special_T in zip(x_CTD, special_CT, strict=True):
            halves[contexts % 2].append(x_TD[~special_T])
            contexts += 1
    numbers = composed(sae, lower_level_of(sae), [_joined(half) for half in halves], config)
    failures = [] if numbers["children"]["latents"] else ["no upper latent fires often enough"]
    return Evaluation(make_output(NAME, config, finite_or_none(numbers), sae, target), {}, failures)


def _joined(parts: list[Tensor]) -> Tensor:
    import torch

    if not parts:
        raise UsageError("two held-out contexts at least are needed: raise --n-contexts or lower --context-size")
    return torch.cat(parts)


def composed(sae: Any, lower: Any, halves: list[Tensor], config: EvalConfig) -> dict[str, dict[str, float | None]]:
    """The numbers of `METRICS`, by category, from activations [N, D] to fit on and to score on."""
    import torch
    from torch.nn.functional import cosine_similarity

    generator = torch.Generator().manual_seed(config.seed)
    parent_L, links_UL = sae.parent_L.cpu(), sae.W_links.detach().cpu()
    fires = [torch.zeros(sae.cfg.d_sae) for _ in halves]
    lower_fires = torch.zeros(len(parent_L))
    for half, own in zip(halves, fires, strict=True):
        for f_NL, g_NU in _latents(sae, lower, half):
            own += (g_NU > 0).sum(0)
            lower_fires += (f_NL > 0).sum(0)
    counts_P = ((fires[0] >= config.n_min) & (fires[1] >= config.n_min)).nonzero().squeeze(1)
    if len(counts_P) > config.most:
        counts_P = counts_P[torch.randperm(len(counts_P), generator=generator)[: config.most].sort().values]
    result: dict[str, dict[str, float | None]] = {category: {} for category in CATEGORIES}
    result["children"]["latents"] = float(len(counts_P))
    if not len(counts_P):
        return result
    correlation_LP = _correlation(sae, lower, halves[0], counts_P)
    owner_L = torch.where(lower_fires > 0, parent_L, -1)
    is_child_LP = owner_L[:, None] == counts_P
    allowed = {
        "children": is_child_LP,
        "another": is_child_LP[:, torch.arange(len(counts_P)).roll(1)] if len(counts_P) > 1 else None,
        "any": (lower_fires > 0)[:, None].expand_as(is_child_LP),
    }
    for category, allowed_LP in allowed.items():
        if allowed_LP is None:
            continue
        ranked = correlation_LP.abs().masked_fill(~allowed_LP, -1).topk(min(MOST, len(parent_L)), dim=0)
        ids_PK = ranked.indices.T.masked_fill(ranked.values.T < 0, -1)
        fitted, scored = (_products(sae, lower, half, counts_P, ids_PK) for half in halves)
        for k in KS:
            result[category][f"r2_{k}"] = explained(fitted, scored, k).mean().item()
    has_P = is_child_LP.any(0)
    sums_PD = (links_UL[counts_P] * is_child_LP.T) @ lower.W_dec.detach().cpu()
    cosines_P = cosine_similarity(sums_PD, sae.W_dec.detach().cpu()[counts_P]) * has_P
    result["children"] |= {
        "cosine": cosines_P.mean().item(),
        "size": is_child_LP.sum(0)[has_P].float().mean().item() if has_P.any() else None,
        "childless": 1 - has_P.float().mean().item(),
    }
    return result


def _latents(sae: Any, lower: Any, x_ND: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Lower [n, L] and upper [n, U] latents of parts of the tokens."""
    import torch

    with torch.no_grad():
        for part in x_ND.split(2048):
            yield lower.encode(part).cpu().double(), sae.encode(part).cpu().double()


def _correlation(sae: Any, lower: Any, x_ND: Tensor, chosen_P: Tensor) -> Tensor:
    """[L, P], 0 for a latent that never changes."""
    import torch

    L, P = lower.cfg.d_sae, len(chosen_P)
    products = torch.zeros(L, P, dtype=torch.float64)
    f_sum, f_squares, g_sum, g_squares = (torch.zeros(n, dtype=torch.float64) for n in (L, L, P, P))
    for f_NL, g_NU in _latents(sae, lower, x_ND):
        f, g = f_NL, g_NU[:, chosen_P]
        products += f.T @ g
        f_sum, f_squares = f_sum + f.sum(0), f_squares + f.pow(2).sum(0)
        g_sum, g_squares = g_sum + g.sum(0), g_squares + g.pow(2).sum(0)
    N = len(x_ND)
    covariance = products / N - f_sum[:, None] * g_sum / N**2
    spread = (f_squares / N - (f_sum / N) ** 2).clamp(min=0)[:, None] * (g_squares / N - (g_sum / N) ** 2).clamp(min=0)
    return torch.where(spread > 0, covariance / spread.clamp(min=1e-300).sqrt(), 0.0).float()


def _products(sae: Any, lower: Any, x_ND: Tensor, chosen_P: Tensor, ids_PK: Tensor) -> Tensor:
    """Sums over tokens of products of 1, the K lower latents and the upper one: [P, K+2, K+2]; an id of -1 is all 0."""
    import torch

    P, K = ids_PK.shape
    found = torch.zeros(P, K + 2, K + 2, dtype=torch.float64)
    for f_NL, g_NU in _latents(sae, lower, x_ND):
        for f, g in zip(f_NL.split(256), g_NU[:, chosen_P].split(256), strict=True):
            own_NPK = f[:, ids_PK.clamp(min=0)] * (ids_PK >= 0)
            z = torch.cat([torch.ones_like(g)[..., None], own_NPK, g[..., None]], -1)
            found += torch.einsum("npi,npj->pij", z, z)
    return found


def explained(fitted: Tensor, scored: Tensor, k: int) -> Tensor:
    """R² [P] on the scored half of least squares on the first k lower latents, with a constant, of the fitted half.

    Args:
        fitted, scored: sums of products [P, K+2, K+2] of 1, lower latents and the upper one.
    """
    import torch

    used = list(range(min(k + 1, scored.shape[-1] - 1)))
    normal, right = fitted[:, used][:, :, used], fitted[:, used, -1]
    weights = (torch.linalg.pinv(normal, hermitian=True) @ right[..., None]).squeeze(-1)
    own = [*used, scored.shape[-1] - 1]
    products = scored[:, own][:, :, own]
    residual = torch.cat([weights, -torch.ones_like(weights[:, :1])], 1)
    error = torch.einsum("pi,pij,pj->p", residual, products, residual)
    total = scored[:, -1, -1] - scored[:, 0, -1] ** 2 / scored[:, 0, 0]
    return 1 - error / total


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
