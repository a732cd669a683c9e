"""Do the latents of an SAE survive the rest of its training, and are they in SAEs of other seeds?

The latents of two SAEs that fire are matched one to one so that the sum of the cosines of their decoder rows is largest
(Hungarian algorithm). Survival is the share of an SAE's latents whose match has a cosine above 0.7. Beside it stand the
mean cosine and the mean correlation of the activations of matched latents.

Compared are the first snapshot of the training with the second (early), the second snapshot with the SAE (late), and
the SAE with the same SAE of other seeds, which are trained where they are missing (seeds). With `--against` the SAE is
compared with other SAEs instead (others). The category random is what as many random directions give, drawn from a
normal distribution with the second moments of the decoder rows of the SAE's latents that fire.

Source: seeds learn different latents, Paulo and Belrose, arXiv 2501.16615.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from eval_runners.contract.contract import Context, Direction, Evaluation, Evaluator, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of the matching of latents."""

    first_share: float = 0.3
    """Share of the training after which the first snapshot is taken; hierarchical's lower level is trained by then."""
    second_share: float = 0.5
    """Share of the training after which the second snapshot is taken; hierarchical then trains both levels."""
    other_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds whose SAEs the SAE is compared with; its seed is left out."""
    against: tuple[str, ...] = ()
    """Folders or SAEs on the Hub to compare with instead; required for an SAE that was not trained here."""
    n_contexts: int = 128
    """Held-out contexts on which activations are compared."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    n_min: int = 5
    """Tokens on which a latent must fire to be matched."""
    most: int = 4096
    """Latents of the SAE that are matched at most, sampled at random."""
    seed: int = 0
    """Seed of the sample and of the random directions."""


_METRICS: tuple[tuple[str, str, Direction], ...] = (
    ("survival", "share of latents that survive", "higher"),
    ("cosine", "mean cosine of matched latents", "higher"),
    ("correlation", "mean correlation of matched latents", "higher"),
    ("latents", "latents matched", "neither"),
)
CATEGORIES = {
    "early": "first to second snapshot",
    "late": "second snapshot to end",
    "seeds": "other seeds",
    "others": "other SAEs",
    "random": "random directions",
}
"""Category -> title of what is compared."""
_ON_LEADERBOARD = ("late.survival", "late.cosine", "seeds.survival", "seeds.cosine", "random.cosine")
METRICS = tuple(
    Metric(
        category,
        name,
        f"{compared}: {title}",
        better if category != "random" else "neither",
        short=f"{category}: {name}" if f"{category}.{name}" in _ON_LEADERBOARD else "",
        column=f"{category}.{name}",
    )
    for category, compared in CATEGORIES.items()
    for name, title, better in _METRICS
    if (category, name) != ("random", "correlation")
)


class Comparison(NamedTuple):
    """Two SAEs whose latents are matched."""

    category: str
    what: str
    """Names the second SAE, or the two snapshots, in the result's rows."""
    sae: SAE[Any]
    other: SAE[Any]


class ConceptStability(Evaluator[Settings]):
    """Survival of latents through the training and between seeds."""

    settings_class = Settings
    metrics = METRICS
    version = 2

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse snapshots that are out of order."""
        if not 0 < settings.first_share < settings.second_share < 1:
            raise UsageError("--first-share must be above 0, --second-share above --first-share and below 1")
        return settings, {}

    def snapshot_shares(self, settings: Settings) -> tuple[float, ...]:
        """Both snapshots, unless other SAEs are named."""
        return () if settings.against else (settings.first_share, settings.second_share)

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Match the latents of every comparison; several comparisons of a category are averaged."""
        from eval_runners.data.heldout import heldout_activations
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.stability import compare_latents, latent_moments, match_random_directions

        require_finite_weights(sae)
        comparisons = self._comparisons(sae, target, settings, context)
        x_ND = _join(heldout_activations(target, context.model, settings.n_contexts, settings.context_size))
        rows: list[dict[str, Any]] = []
        for pair in comparisons:
            row = compare_latents(
                pair.sae, pair.other, x_ND, n_min=settings.n_min, most=settings.most, seed=settings.seed
            )
            rows.append({"category": pair.category, "what": pair.what, **row})
        values: dict[str, float | None] = {}
        for category in CATEGORIES:
            for name, _, _ in _METRICS:
                known = [row[name] for row in rows if row["category"] == category and row[name] is not None]
                if known:
                    values[f"{category}.{name}"] = sum(known) / len(known)
        if rows:
            fires_S = latent_moments(sae, x_ND).fires_S >= settings.n_min
            rows_FD = sae.W_dec.detach().cpu().double()[fires_S].numpy()
            random = match_random_directions(rows[-1]["latents"], rows[-1]["of"], rows_FD, settings.seed)
            values |= {f"random.{name}": value for name, value in random.items()}
        failures = [] if any(row["latents"] for row in rows) else ["no latent fires"]
        return Evaluation(values, {"pairs": rows}, failures)

    def _comparisons(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> list[Comparison]:
        """Load every SAE to compare with, after training the other seeds that are missing."""
        from eval_runners.harness.find_sae import SAERequest, locate_all, locate_name, locate_snapshot
        from eval_runners.harness.fit import load_for_target

        if settings.against:
            return [
                Comparison(
                    "others", name, sae, load_for_target(locate_name(name), target, context.model, context.device)
                )
                for name in settings.against
            ]
        plan = context.located.plan if context.located else None
        if plan is None:
            raise UsageError(
                f"{self.name} compares SAEs that are trained here; name others to compare with by --against"
            )
        shares = self.snapshot_shares(settings)
        if plan.lacks(shares):
            raise UsageError(f"{plan.label} has no snapshots of its training")
        seeds = [seed for seed in settings.other_seeds if seed != plan.settings.seed]
        plans = [replace(plan, settings=replace(plan.settings, seed=seed)) for seed in seeds]
        located = locate_all([SAERequest(other.full_name, other) for other in plans], context.device)
        first, second = (locate_snapshot(plan.snapshot(share)).load(context.device) for share in shares)
        return [
            Comparison("early", f"{shares[0]:g} to {shares[1]:g}", first, second),
            Comparison("late", f"{shares[1]:g} to 1", second, sae),
            *(Comparison("seeds", f"seed {other.seed}", sae, other.load(context.device)) for other in located),
        ]


def _join(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Activations [N, D] of all tokens that are not special."""
    import torch

    return torch.cat([x_CTD[~special_CT] for x_CTD, special_CT in batches])


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
