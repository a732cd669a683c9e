"""positional_consistency: do latents stay on along a text, and does their firing depend on where the token stands?

Over held-out contexts, special tokens left out, for all latents and, where the SAE says which are which, for slow and
fast ones apart; only latents that fire often enough count. Beside them stand two ceilings, since a hook that carries
only the current token leaves nothing to be consistent about: the channels of the residual stream, and the one
linear direction that tells documents apart best (fitted on the first half of the contexts, scored on the second).

Every SAE has latents that stay on, so slow ones are compared with the most persistent ones that an SAE has anyway:
those of the highest autocorrelation on the first half of the contexts, as many as make up a tenth of its firing, scored
on the second half.

Autocorrelation: Pearson, of a latent with itself some tokens on, mean over latents weighted by how often they fire; the
median counts each latent once. Smoothness: T-SAE's (arXiv 2511.05541), max |a_t - a_t-1| / |x_t - x_t-1| of a sequence;
scale-free: each latent divided by its root mean square over the tokens on which it fires, or over all tokens, which
makes rare latents look rough. Position information: bits between firing and a bin of positions, less
the same with positions shuffled; a latent that fires more has more to tell, so its share of the bits of firing, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval_runners.contract.contract import Direction, Evaluation, Metric
from sae_variants.common.errors import UsageError

NAME = "positional_consistency"
CATEGORIES = ("all", "slow", "fast", "persistent", "residual", "document_direction")
LAGS = (1, 2, 4, 8, 16, 32)
AT_ONCE = 2**23
"""Numbers in a block of latents, 32 MiB; a few of its size are held at a time."""


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 512
    """Held-out contexts that are read."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    batch_contexts: int = 16
    """Contexts in a batch of the language model."""
    position_bins: int = 16
    """Equally long stretches of positions, for position information and profiles."""
    persistent_share: float = 0.1
    """Share of all firing that the most persistent latents make up."""
    n_min: int = 20
    """A latent counts if it fires on at least so many tokens."""
    seed: int = 0
    """Seed of the shuffled positions and of the clustering."""


_NAMES: tuple[tuple[str, str, Direction], ...] = (
    *((f"autocorrelation_{lag}", f"autocorrelation, lag {lag}", "higher") for lag in LAGS),
    ("autocorrelation_median", "autocorrelation of the median latent, lag 8", "higher"),
    ("half_life", "half-life of autocorrelation, tokens", "higher"),
    ("smoothness", "smoothness, T-SAE's", "lower"),
    ("smoothness_scale_free", "smoothness, scale-free", "lower"),
    ("smoothness_all_tokens", "smoothness, by scale over all tokens", "lower"),
    ("position_information", "position information, bits", "lower"),
    ("position_share", "position information / entropy of firing", "lower"),
    ("copies", "has a near-copy by decoder", "lower"),
    ("redundancy", "has one that fires at other positions", "lower"),
    ("sequence_l0", "latents of a sequence / of a token", "lower"),
    ("l0", "L0", "neither"),
    ("latents", "latents that count", "neither"),
    ("flat", "share of latents: flat over positions", "neither"),
    ("early", "early", "neither"),
    ("late", "late", "neither"),
    ("periodic", "periodic", "neither"),
)
_SHORT = {
    "autocorrelation_8": ("autocorrelation 8", "all", "persistent", "slow"),
    "smoothness_scale_free": ("smoothness", "all", "persistent", "slow"),
    "position_information": ("position bits", "all", "slow"),
}
"""Metric -> head of its column on the leaderboard, and for which latents it has one."""


def _metric(category: str, name: str, title: str, better: Direction) -> Metric:
    is_lag = name.startswith("autocorrelation_") and name != "autocorrelation_median"
    curve = (f"autocorrelation, {category} latents", "lag, tokens", int(name.rpartition("_")[2])) if is_lag else None
    linear = (("residual stream", "residual"), ("direction of documents", "document_direction"))
    has_references = category == "all" and (is_lag or name in _SHORT)
    return Metric(
        f"{category}.{name}",
        f"{category.replace('_', ' ')}: {title}",
        better,
        f"eval_result_metrics.{category}.{name}",
        short=f"{category}: {_SHORT[name][0]}" if category in _SHORT.get(name, ("",))[1:] else "",
        references=tuple((what, f"eval_result_metrics.{of}.{name}") for what, of in linear) if has_references else (),
        curve=curve if category in ("all", "slow", "fast", "persistent") else None,
    )


METRICS = tuple(_metric(category, *described) for category in CATEGORIES for described in _NAMES)


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, tuple(name for name, _, _ in _NAMES))


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """All metrics, what they are made of as arrays, and pictures."""
    import torch

    from eval_runners.data.heldout import activations_of, heldout_tokens
    from eval_runners.measures.autocorrelation import MEDIAN_LAG, Documents, Statistics
    from eval_runners.measures.position_profiles import Related, cluster_profiles, find_redundant
    from eval_runners.store.envelope import make_output
    from eval_runners.views.profile_pictures import draw_profiles
    from sae_variants.common.values import finite_or_none
    from sae_variants.registry.build import latent_groups

    if config.context_size - 1 < config.position_bins:
        raise UsageError(
            f"--position-bins {config.position_bins} are more than the {config.context_size - 1} positions of a context"
        )
    if not 0 < config.persistent_share <= 1:
        raise UsageError(f"--persistent-share must be above 0 and at most 1, not {config.persistent_share:g}")
    ids_CT = heldout_tokens(target, model, config.n_contexts, config.context_size)
    if len(ids_CT) < 2:
        raise UsageError(
            "positional_consistency needs two contexts, one to find what tells documents apart and one to score it: "
            "raise --n-contexts or give more text"
        )
    half = len(ids_CT) // 2
    first, second, residual, direction = (Statistics(LAGS, config.position_bins, config.seed + i) for i in range(4))
    documents, related = Documents(), None
    with torch.no_grad():
        for latents, part_CT in ((first, ids_CT[:half]), (second, ids_CT[half:])):
            for x_CTD, special_CT in activations_of(part_CT, target, model, config.batch_contexts):
                # a few contexts at a time: wide SAEs have 32 MiB of latents in each
                few = max(1, AT_ONCE // (x_CTD.shape[1] * sae.cfg.d_sae))
                for x_cTD, special_cT in zip(x_CTD.split(few), special_CT.split(few), strict=True):
                    acts_cTS = sae.encode(x_cTD).float()
                    latents.add(acts_cTS, x_cTD, special_cT)
                    if related is not None:
                        related.add(acts_cTS, special_cT)
                if latents is first:
                    documents.add(x_CTD, special_CT)
                else:
                    residual.add(x_CTD, x_CTD, special_CT)
                    direction.add(x_CTD @ documents.direction_D1().to(x_CTD), x_CTD, special_CT)
            related = related or Related(sae.W_dec, first.fires_S > 0)
    latents = first + second
    keep_S = latents.fires_S >= config.n_min
    if not keep_S.any() and (most := int(latents.fires_S.max())):
        raise UsageError(f"no latent fires on --n-min {config.n_min} tokens; the most that one does is {most}")
    groups = {"all": slice(None), **latent_groups(sae)}
    profiles = cluster_profiles(latents.profile, keep_S, config.seed)
    copy_S, redundant_S = find_redundant(sae.W_dec, profiles.band_S, keep_S)
    values: dict[str, dict[str, Any]] = {category: {name: None for name, _, _ in _NAMES} for category in CATEGORIES}
    curves: dict[str, dict[str, float]] = {}
    for group, part in groups.items():
        mask_S = torch.zeros_like(keep_S)
        mask_S[part] = keep_S[part]
        if mask_S.any():
            curves[f"{group} latents"] = latents.metrics(mask_S)
            values[group] |= curves[f"{group} latents"] | {
                "latents": float(mask_S.sum()),
                "copies": copy_S[mask_S].double().mean().item(),
                "redundancy": redundant_S[mask_S].double().mean().item(),
                **profiles.shares(mask_S),
            }
    persistent_S = first.most_persistent(keep_S, MEDIAN_LAG, config.persistent_share)
    if persistent_S.any():
        curves["most persistent latents"] = second.metrics(persistent_S)
        values["persistent"] |= curves["most persistent latents"] | {"latents": float(persistent_S.sum())}
    for category, title, statistics in (
        ("residual", "residual stream", residual),
        ("document_direction", "document direction", direction),
    ):
        curves[title] = statistics.linear_metrics()
        values[category] |= curves[title]
    failures = [] if keep_S.any() else ["no latent fires"]
    files = draw_profiles(latents, keep_S, profiles, related, curves) if keep_S.any() and related else {}
    output = make_output(NAME, config, finite_or_none(values), sae, target)
    return Evaluation(output, {"tokens": latents.tokens}, failures, files)


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
