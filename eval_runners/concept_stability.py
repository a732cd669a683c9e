"""concept_stability: are the latents of an SAE still there later in its training, and in SAEs of other seeds?

The latents of two SAEs that fire are matched one to one so that the sum of the cosines of their decoder rows is the
largest (Hungarian). Survival: share of an SAE's latents whose match has a cosine above 0.7; beside it the mean cosine
and the mean correlation of matched latents over the same tokens. Compared are the SAE after one share of its training
and after another, that and the end, the end and the same SAE of other seeds (those that are missing are trained), or
other SAEs that are named. Random: what unit vectors in random directions give, as many and in as many dimensions.

Seeds differ in what they find (arXiv 2501.16615), so few latents survive from one to the next. N tokens, S latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Direction, Evaluation, Metric
from sae_variants.common.errors import UsageError

NAME = "concept_stability"
CATEGORIES = ("early", "late", "seeds", "others", "random")
SURVIVES = 0.7
"""Cosine above which a latent counts as found again."""


@dataclass(frozen=True)
class EvalConfig:
    first_share: float = 0.3
    """Share of the training after which the SAE is looked at first; hierarchical's lower level is trained by then."""
    second_share: float = 0.5
    """And the second time; hierarchical's levels train together from then on. Both are of its default phases: at the
    first look its upper level is not trained yet."""
    other_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds whose SAEs it is compared with, its own left out."""
    against: tuple[str, ...] = ()
    """Folders, or SAEs on the Hub, to compare with instead; needed for an SAE that was not trained here."""
    n_contexts: int = 128
    """Held-out contexts on which latents fire."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    n_min: int = 5
    """A latent counts if it fires on at least so many tokens."""
    most: int = 4096
    """Latents of the SAE that are matched at most, drawn at random from those that count."""
    seed: int = 0
    """Seed of that draw and of the random directions."""


_NAMES: tuple[tuple[str, str, Direction], ...] = (
    ("survival", "share of latents found again", "higher"),
    ("cosine", "mean cosine of matched latents", "higher"),
    ("correlation", "mean correlation of matched latents", "higher"),
    ("latents", "latents matched", "neither"),
)
_TITLES = {
    "early": "first to second look", "late": "second look to end", "seeds": "other seeds", "others": "other SAEs",
    "random": "random directions",
}  # fmt: skip
_SHOWN = (
    ("late", "survival"), ("late", "cosine"), ("seeds", "survival"), ("seeds", "cosine"), ("random", "cosine")
)  # fmt: skip
METRICS = tuple(
    Metric(
        f"{category}.{name}",
        f"{_TITLES[category]}: {title}",
        better if category != "random" else "neither",
        f"eval_result_metrics.{category}.{name}",
        short=f"{category}: {name}" if (category, name) in _SHOWN else "",
    )
    for category in CATEGORIES
    for name, title, better in _NAMES
    if not (category == "random" and name == "correlation")
)


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, tuple(name for name, _, _ in _NAMES))


def snapshots(config: EvalConfig) -> tuple[float, ...]:
    return () if config.against else (config.first_share, config.second_share)


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str, found: Any = None) -> Evaluation:
    """Survival, cosine and correlation of every comparison that can be made, means over seeds or over others."""
    import torch

    from eval_runners.data.heldout import heldout_activations
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.envelope import make_output
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    if not (0 < config.first_share < config.second_share < 1):
        raise UsageError("--first-share must be above 0, --second-share above that and below 1")
    pairs = list(_pairs(sae, found, config, device))
    x_ND = []
    for x_CTD, special_CT in heldout_activations(target, model, config.n_contexts, config.context_size):
        x_ND.append(x_CTD[~special_CT])
    x = torch.cat(x_ND)
    values: dict[str, dict[str, Any]] = {category: {name: None for name, _, _ in _NAMES} for category in CATEGORIES}
    rows = []
    for category, what, one, other in pairs:
        rows.append({"category": category, "what": what, **compare(one, other, x, config)})
    for category in CATEGORIES:
        of = [row for row in rows if row["category"] == category]
        for name, _, _ in _NAMES:
            known = [row[name] for row in of if row[name] is not None]
            values[category][name] = sum(known) / len(known) if known else None
    if rows:
        sizes = rows[-1]["latents"], rows[-1]["of"]
        values["random"] |= random_directions(int(sizes[0]), int(sizes[1]), sae.cfg.d_in, config.seed)
    failures = [] if any(row["latents"] for row in rows) else ["no latent fires"]
    return Evaluation(make_output(NAME, config, finite_or_none(values), sae, target), {"pairs": rows}, failures)


def _pairs(sae: Any, found: Any, config: EvalConfig, device: str) -> Iterator[tuple[str, str, Any, Any]]:
    """(category, what, SAE, SAE) of every comparison; what is missing is trained."""
    from eval_runners.harness.find_sae import locate_folder, locate_name
    from sae_variants.training.train import train_plans

    for name in config.against:
        other = locate_name(name).load(device)
        if other.cfg.d_in != sae.cfg.d_in:
            raise UsageError(f"--against {name} has d_in = {other.cfg.d_in}, not {sae.cfg.d_in}")
        yield "others", name, sae, other
    if config.against:
        return
    plan = getattr(found, "plan", None)
    if plan is None:
        raise UsageError(f"{NAME} compares SAEs that are trained here; give another one to compare with by --against")
    shares, own = snapshots(config), plan.settings.seed
    others = [replace(plan, settings=replace(plan.settings, seed=seed)) for seed in config.other_seeds if seed != own]
    if plan.lacks(shares):
        raise UsageError(f"{plan.label} was not looked at in its training")
    train_plans(others, device)
    first, second = (locate_folder(plan.snapshot(share)).load(device) for share in shares)
    yield "early", f"{shares[0]:g} to {shares[1]:g}", first, second
    yield "late", f"{shares[1]:g} to 1", second, sae
    for other in others:
        yield "seeds", f"seed {other.settings.seed}", sae, locate_folder(other.sae_folder).load(device)


def compare(one: Any, other: Any, x_ND: Any, config: EvalConfig) -> dict[str, Any]:
    """The latents of one SAE beside their matches in the other, both on the same activations."""
    import torch
    from scipy.optimize import linear_sum_assignment
    from torch.nn.functional import normalize

    generator = torch.Generator().manual_seed(config.seed)
    moments = [_moments(sae, x_ND) for sae in (one, other)]
    alive = [(fires >= config.n_min).nonzero().squeeze(1) for fires, _, _ in moments]
    if len(alive[0]) > config.most:
        alive[0] = alive[0][torch.randperm(len(alive[0]), generator=generator)[: config.most].sort().values]
    result: dict[str, Any] = {"latents": len(alive[0]), "of": len(alive[1])}
    if not len(alive[0]) or not len(alive[1]):
        return result | {"survival": 0.0, "cosine": None, "correlation": None}
    rows = [sae.W_dec.detach().cpu().double()[ids] for sae, ids in zip((one, other), alive, strict=True)]
    cosines = (normalize(rows[0], dim=-1) @ normalize(rows[1], dim=-1).T).numpy()
    left, right = (torch.from_numpy(side) for side in linear_sum_assignment(cosines, maximize=True))
    matched = torch.from_numpy(cosines)[left, right]
    ids = alive[0][left], alive[1][right]
    products = torch.zeros(len(left), dtype=torch.float64)
    with torch.no_grad():
        for part in x_ND.split(2048):
            acts = [sae.encode(part).double().cpu()[:, i] for sae, i in zip((one, other), ids, strict=True)]
            products += (acts[0] * acts[1]).sum(0)
    (mean, spread), (other_mean, other_spread) = (
        (total[i], (squares[i] - total[i] ** 2).clamp(min=0).sqrt())
        for (_, total, squares), i in zip(moments, ids, strict=True)
    )
    both = spread * other_spread
    correlations = ((products / len(x_ND) - mean * other_mean) / both)[both > 0]
    return result | {
        "survival": (matched > SURVIVES).sum().item() / len(alive[0]),
        "cosine": matched.mean().item(),
        "correlation": correlations.mean().item() if len(correlations) else None,
    }


def _moments(sae: Any, x_ND: Any) -> tuple[Any, Any, Any]:
    """Of each latent: on how many tokens it fires, its mean and its mean square."""
    import torch

    fires, total, squares = (torch.zeros(sae.cfg.d_sae, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for part in x_ND.split(2048):
            acts = sae.encode(part).double().cpu()
            fires += (acts > 0).sum(0)
            total += acts.sum(0)
            squares += acts.pow(2).sum(0)
    return fires, total / len(x_ND), squares / len(x_ND)


def random_directions(n: int, m: int, d: int, seed: int) -> dict[str, Any]:
    """Survival and mean cosine of n random unit vectors matched with m others in d dimensions."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if not n or not m:
        return {"survival": None, "cosine": None, "latents": float(n)}
    generator = np.random.default_rng(seed)
    sides = [generator.standard_normal((size, d)) for size in (n, m)]
    one, other = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    cosines = one @ other.T
    matched = cosines[linear_sum_assignment(cosines, maximize=True)]
    return {"survival": float((matched > SURVIVES).sum() / n), "cosine": float(matched.mean()), "latents": float(n)}


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
