"""Do latents stay on along a text, and does their firing depend on where the token stands?

The metrics cover held-out contexts without special tokens. They are computed over all latents and, where the SAE's
training separates them, over slow and fast latents; only latents that fire often enough count. Two references bound
what can be reached, since a hook that carries only the current token leaves nothing to be consistent about: the
channels of the residual stream, and the linear direction along which documents differ most (fitted on the first half
of the contexts, scored on the second).

Every SAE has latents that stay on, so slow latents are compared with the most persistent latents of the same SAE: those
of the highest autocorrelation on the first half of the contexts that together account for a tenth of all firing,
scored on the second half.

- Autocorrelation: Pearson correlation between a latent at a token and the same latent some tokens later. The mean
  weights latents by how often they fire; the median gives each latent the same weight.
- Smoothness: the largest |a_t - a_{t-1}| / ‖x_t - x_{t-1}‖₂ of a sequence, as in T-SAE. The scale-free form divides
  each latent by its root mean square over the tokens on which it fires. Dividing by the root mean square over all
  tokens makes rare latents appear rough.
- Position information: bits between firing and a bin of positions, minus the same with positions shuffled. It grows
  with the firing rate, so its share of the entropy of firing is reported too.

Source: smoothness from T-SAE, arXiv 2511.05541.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Curve, Direction, Evaluation, Evaluator, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from eval_runners.measures.context_statistics import ContextStatistics
    from eval_runners.measures.position_profiles import ProfileClusters
    from sae_variants.language_model.target import Target

CATEGORIES = ("all", "slow", "fast", "persistent", "residual", "document_direction")
LAGS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Settings:
    """Settings of positional consistency."""

    n_contexts: int = 512
    """Held-out contexts."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    batch_contexts: int = 16
    """Contexts in a batch of the language model."""
    position_bins: int = 16
    """Equally long stretches of positions, for position information and profiles."""
    persistent_share: float = 0.1
    """Share of all firing that the most persistent latents account for, above 0 and at most 1."""
    n_min: int = 20
    """Tokens on which a latent must fire to count."""
    seed: int = 0
    """Seed of the shuffled positions and of the clustering."""


TITLES: dict[str, tuple[str, Direction]] = {
    **{f"autocorrelation_{lag}": (f"autocorrelation, lag {lag}", "higher") for lag in LAGS},
    "autocorrelation_median": ("autocorrelation of the median latent, lag 8", "higher"),
    "half_life": ("half-life of autocorrelation, tokens", "higher"),
    "smoothness": ("smoothness, as in T-SAE", "lower"),
    "smoothness_scale_free": ("smoothness, scale-free", "lower"),
    "smoothness_all_tokens": ("smoothness, scaled over all tokens", "lower"),
    "position_information": ("position information, bits", "lower"),
    "position_share": ("position information / entropy of firing", "lower"),
    "copies": ("share with a near-copy by decoder cosine", "lower"),
    "redundancy": ("share with a near-copy at other positions", "lower"),
    "sequence_l0": ("distinct latents per sequence / latents per token", "lower"),
    "l0": ("L0", "neither"),
    "latents": ("latents that count", "neither"),
    "flat": ("share with a flat profile over positions", "neither"),
    "early": ("share with an early profile", "neither"),
    "late": ("share with a late profile", "neither"),
    "periodic": ("share with a periodic profile", "neither"),
}
"""Metric name -> title and direction; every category has all of them."""
SHORT_HEADS = {
    "autocorrelation_8": ("autocorrelation 8", ("all", "persistent", "slow")),
    "smoothness_scale_free": ("smoothness", ("all", "persistent", "slow")),
    "position_information": ("position bits", ("all", "slow")),
}
"""Metric name -> head of its leaderboard column, and the categories that have such a column."""
REFERENCES = {"residual stream": "residual", "direction of documents": "document_direction"}
"""Title of a reference -> category of its values."""


def _metric(category: str, name: str) -> Metric:
    title, better = TITLES[name]
    head, categories_with_head = SHORT_HEADS.get(name, ("", ()))
    lag = next((lag for lag in LAGS if name == f"autocorrelation_{lag}"), None)
    is_reference = category in REFERENCES.values()
    has_references = category == "all" and (lag is not None or name in SHORT_HEADS)
    return Metric(
        category,
        name,
        f"{category.replace('_', ' ')}: {title}",
        better,
        short=f"{category}: {head}" if category in categories_with_head else "",
        column=f"{category}.{name}",
        references=tuple((what, f"{of}.{name}") for what, of in REFERENCES.items()) if has_references else (),
        curve=Curve(f"autocorrelation, {category} latents", "lag, tokens", lag) if lag and not is_reference else None,
    )


class PositionalConsistency(Evaluator[Settings]):
    """Autocorrelation, smoothness and position profiles of latents along held-out contexts."""

    settings_class = Settings
    metrics = tuple(_metric(category, name) for category in CATEGORIES for name in TITLES)

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse bins that outnumber positions, and shares that are none."""
        positions = settings.context_size - 1
        if positions < settings.position_bins:
            raise UsageError(
                f"--position-bins {settings.position_bins} are more than the {positions} positions of a context: "
                "lower it, or raise --context-size"
            )
        if not 0 < settings.persistent_share <= 1:
            raise UsageError(f"--persistent-share must be above 0 and at most 1, not {settings.persistent_share:g}")
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Compute all metrics, with their arrays and pictures as files."""
        from eval_runners.data.heldout import heldout_tokens
        from eval_runners.measures.heldout_statistics import measure_heldout
        from eval_runners.measures.position_profiles import cluster_profiles
        from eval_runners.views.profile_pictures import draw_profiles

        ids_CT = heldout_tokens(target, context.model, settings.n_contexts, settings.context_size)
        if len(ids_CT) < 2:
            raise UsageError(
                "positional_consistency needs two contexts, one to fit the document direction and one to score it: "
                "raise --n-contexts or give more text"
            )
        heldout = measure_heldout(
            sae,
            target,
            context.model,
            ids_CT,
            LAGS,
            settings.position_bins,
            settings.seed,
            settings.batch_contexts,
        )
        latents = heldout.first + heldout.second
        keep_S = latents.fires_S >= settings.n_min
        if not keep_S.any() and (most := int(latents.fires_S.max())):
            raise UsageError(f"no latent fires on --n-min {settings.n_min} tokens: lower it to at most {most}")
        profiles = cluster_profiles(latents.profile, keep_S, settings.seed)
        by_category = _latent_metrics(sae, latents, profiles, keep_S)
        by_category |= _persistent_metrics(heldout.first, heldout.second, keep_S, settings.persistent_share)
        by_category["residual"] = heldout.residual.channel_metrics()
        by_category["document_direction"] = heldout.direction.channel_metrics()
        values = {f"{category}.{name}": value for category, part in by_category.items() for name, value in part.items()}
        if not keep_S.any():
            return Evaluation(values, {"tokens": latents.tokens}, ["no latent fires"])
        files = draw_profiles(latents, keep_S, profiles, heldout.neighbours, by_category)
        return Evaluation(values, {"tokens": latents.tokens}, files=files)


def _latent_metrics(
    sae: SAE[Any], latents: ContextStatistics, profiles: ProfileClusters, keep_S: Tensor
) -> dict[str, dict[str, float]]:
    """Metrics of all latents, and of slow and fast ones where the SAE's training separates them."""
    import torch

    from eval_runners.measures.decoder_neighbours import find_near_copies
    from sae_variants.registry.build import latent_groups

    copy_S, redundant_S = find_near_copies(sae.W_dec, profiles.band_S, keep_S)
    by_category = {}
    for category, part in {"all": slice(None), **latent_groups(sae)}.items():
        mask_S = torch.zeros_like(keep_S)
        mask_S[part] = keep_S[part]
        if mask_S.any():
            by_category[category] = latents.latent_metrics(mask_S) | {
                "latents": float(mask_S.sum()),
                "copies": copy_S[mask_S].double().mean().item(),
                "redundancy": redundant_S[mask_S].double().mean().item(),
                **profiles.shares(mask_S),
            }
    return by_category


def _persistent_metrics(
    first: ContextStatistics, second: ContextStatistics, keep_S: Tensor, share: float
) -> dict[str, dict[str, float]]:
    """Metrics, on the second half, of the latents that are most persistent on the first; empty if there are none."""
    from eval_runners.measures.context_statistics import MEDIAN_LAG

    persistent_S = first.most_persistent(keep_S, MEDIAN_LAG, share)
    if not persistent_S.any():
        return {}
    return {"persistent": second.latent_metrics(persistent_S) | {"latents": float(persistent_S.sum())}}


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
