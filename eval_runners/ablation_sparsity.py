"""ablation_sparsity: does a latent change few of the next tokens' logits, or all of them a little?

A latent is taken away at one token on which it fires, and the logits of that token and those after it are compared with
the clean run's, T tokens of one document x V words, each token's changes less their median. Of these changes
(L1 / L2)² / (V T) is the share of them that it would take to hold the effect if all were alike: 1 / (V T) for a single
logit, 1 for all. Mean over places of a latent, then over latents drawn at random. Gao et al., arXiv 2406.04093, 4.5.

Beside it the same of a random direction of the same norm in the same places.

Shapes: C contexts, T tokens, V words, P places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Evaluation, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "ablation_sparsity"
CATEGORIES = ("latents", "random")
_NAMES = ("sparsity", "sparsity_low", "sparsity_high", "count")


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 128
    """Held-out contexts in which latents are looked for."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    tokens_after: int = 16
    """T, tokens whose logits are compared, the one on which the latent fires included."""
    n_latents: int = 60
    """Latents that are looked at, drawn at random."""
    places: int = 4
    """Places of each latent, in as many contexts."""
    seed: int = 0
    """Seed of latents, places and random directions."""


METRICS = (
    Metric(
        "sparsity", "share of the logits that taking a latent away changes", "lower",
        "eval_result_metrics.latents.sparsity", short="logits changed",
    ),
    Metric("sparsity_low", "lower end of its 95 % interval", "neither", "eval_result_metrics.latents.sparsity_low"),
    Metric("sparsity_high", "upper end of its 95 % interval", "neither", "eval_result_metrics.latents.sparsity_high"),
    Metric("random", "the same of random directions", "neither", "eval_result_metrics.random.sparsity"),
    Metric("latents", "latents looked at", "neither", "eval_result_metrics.latents.count"),
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings. UsageError for those that cannot be."""
    if config.tokens_after >= config.context_size:
        raise UsageError(f"--tokens-after {config.tokens_after} must be below --context-size {config.context_size}")
    if config.n_contexts < 2 * config.places:
        raise UsageError(f"--n-contexts {config.n_contexts} must be at least twice --places {config.places}")
    return config, {}


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Means over latents, with 95 % intervals by bootstrap over them."""
    import numpy as np

    from eval_runners.measures.ablation import in_float32
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.measures.sampled_latents import sample_latents
    from eval_runners.store.envelope import make_output
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    found = sample_latents(
        sae,
        target,
        model,
        config.n_contexts,
        config.context_size,
        config.n_latents,
        config.places,
        config.seed,
        option="--places",
    )
    with in_float32(model):
        rows = traced(sae, target.hook_name, model, found, config)
    values: dict[str, dict[str, Any]] = {category: dict.fromkeys(_NAMES) for category in CATEGORIES}
    generator = np.random.default_rng(config.seed)
    for category in CATEGORIES:
        known = np.array([row[category] for row in rows if np.isfinite(row[category])])
        values[category]["count"] = float(len(known))
        if len(known):
            means = known[generator.integers(len(known), size=(2000, len(known)))].mean(1)
            low, high = np.quantile(means, (0.025, 0.975)).tolist()
            values[category] |= {"sparsity": float(known.mean()), "sparsity_low": low, "sparsity_high": high}
    failures = [] if values["latents"]["count"] else ["no latent fires often enough, or none changes a logit"]
    output = make_output(NAME, config, finite_or_none(values), sae, target)
    return Evaluation(output, {"by_latent": rows}, failures)


def traced(sae: Any, hook_name: str, model: Any, found: Any, config: EvalConfig) -> list[dict[str, Any]]:
    """A row per latent: its number, the largest activation looked at, and the sparsities; NaN without effect."""
    import torch

    from eval_runners.measures.ablation import Ablation
    from sae_variants.common.console import progress

    generator = torch.Generator().manual_seed(config.seed)
    bos = torch.full((config.places, 1), model.tokenizer.bos_token_id)
    ends_CT = found.special_CT.unfold(1, config.tokens_after, 1).any(-1)  # whether a document ends within T tokens
    rows = []
    for number, latent in enumerate(progress(found.latents, "latents")):
        acts_CT = found.acts_CTP[:, : ends_CT.shape[1], number] * ~ends_CT
        contexts = (acts_CT > 0).any(1).nonzero().squeeze(1)
        contexts = contexts[torch.randperm(len(contexts), generator=generator)[: config.places]]
        if not len(contexts):
            continue
        at = [int(torch.multinomial((acts_CT[c] > 0).float(), 1, generator=generator)) for c in contexts.tolist()]
        ids = torch.cat([bos[: len(contexts)], found.ids_CT[contexts]], 1)
        seen_CT, written_CT = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape)
        for row, (context, place) in enumerate(zip(contexts.tolist(), at, strict=True)):
            seen_CT[row, place + 1 : place + 1 + config.tokens_after] = True  # BOS is first
            written_CT[row, place + 1] = acts_CT[context, place]
        ablation = Ablation(model, hook_name, ids, seen_CT)
        row_D = sae.W_dec.detach()[latent].float().cpu()
        random_D = torch.randn(len(row_D), generator=generator)
        random_D *= row_D.norm() / random_D.norm()
        measured = {
            category: sparsity(
                ablation.without(written_CT[..., None] * direction_D).view(len(contexts), config.tokens_after, -1)
            )
            for category, direction_D in (("latents", row_D), ("random", random_D))
        }
        rows.append({"latent": latent, "activation": float(written_CT.max()), **measured})
    return rows


def sparsity(change_CTV: Tensor) -> float:
    """Mean over contexts of (L1 / L2)² / (V T) of changes of logits, less each token's median; NaN for no change."""
    centred = change_CTV.double() - change_CTV.double().median(-1, keepdim=True).values
    flat = centred.flatten(1)
    changed = flat[flat.any(1)]
    return (changed.abs().sum(1).pow(2) / changed.pow(2).sum(1) / flat.shape[1]).mean().item()


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
