"""positional_consistency: do latents stay on along a text, and does their firing depend on where the token stands?

Over held-out contexts, special tokens left out, for all latents and, where the SAE says which are which, for slow and
fast ones apart; only latents that fire often enough count. Beside them stand two ceilings, since a hook that carries
only the current token leaves nothing to be consistent about: the channels of the residual stream, and the one
linear direction that tells documents apart best (fitted on the first half of the contexts, scored on the second).

Autocorrelation: Pearson, of a latent with itself some tokens on, mean over latents weighted by how often they fire.
Smoothness: T-SAE's (arXiv 2511.05541), max |a_t - a_t-1| / |x_t - x_t-1| of a sequence; scale-free: each latent divided
by its root mean square where it fires. Position information: bits between firing and a bin of positions, less
the same with positions shuffled; a latent that fires more has more to tell, so its share of the bits of firing, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval_runners._contract import Direction, Evaluation, Metric
from sae_variants._errors import UsageError

NAME = "positional_consistency"
CATEGORIES = ("all", "slow", "fast", "residual", "document_direction")
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
    n_min: int = 20
    """A latent counts if it fires on at least so many tokens."""
    seed: int = 0
    """Seed of the shuffled positions and of the clustering."""


_NAMES: tuple[tuple[str, str, Direction], ...] = (
    *((f"autocorrelation_{lag}", f"autocorrelation, lag {lag}", "higher") for lag in LAGS),
    ("half_life", "half-life of autocorrelation, tokens", "higher"),
    ("smoothness", "smoothness, T-SAE's", "lower"),
    ("smoothness_scale_free", "smoothness, scale-free", "lower"),
    ("position_information", "position information, bits", "lower"),
    ("position_share", "position information / entropy of firing", "lower"),
    ("redundancy", "redundant across positions", "lower"),
    ("sequence_l0", "latents of a sequence / of a token", "lower"),
    ("l0", "L0", "neither"),
    ("latents", "latents that count", "neither"),
    ("flat", "share of latents: flat over positions", "neither"),
    ("early", "early", "neither"),
    ("late", "late", "neither"),
    ("periodic", "periodic", "neither"),
)
_SHORT = {
    "autocorrelation_8": "autocorrelation 8", "smoothness_scale_free": "smoothness",
    "position_information": "position bits",
}  # fmt: skip


def _metric(category: str, name: str, title: str, better: Direction) -> Metric:
    is_lag = name.startswith("autocorrelation_")
    curve = (f"autocorrelation, {category} latents", "lag, tokens", int(name.rpartition("_")[2])) if is_lag else None
    linear = (("residual stream", "residual"), ("direction of documents", "document_direction"))
    has_references = category == "all" and (is_lag or name in _SHORT)
    return Metric(
        f"{category}.{name}",
        f"{category.replace('_', ' ')}: {title}",
        better,
        f"eval_result_metrics.{category}.{name}",
        short=f"{category}: {_SHORT[name]}" if name in _SHORT and category in ("slow", "all") else "",
        references=tuple((what, f"eval_result_metrics.{of}.{name}") for what, of in linear) if has_references else (),
        curve=curve if category in ("all", "slow", "fast") else None,
    )


METRICS = tuple(_metric(category, *described) for category in CATEGORIES for described in _NAMES)


def output_class() -> type:
    from eval_runners import _envelope

    return _envelope.envelope_class(NAME, EvalConfig, CATEGORIES, tuple(name for name, _, _ in _NAMES))


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """All metrics, what they are made of as arrays, and pictures."""
    import torch

    from eval_runners import _envelope, _heldout, _positions, _profiles, _result
    from sae_variants._register import latent_groups

    if config.n_contexts < 2:
        raise UsageError(
            "--n-contexts must be at least 2: one half finds what tells documents apart, the other scores it"
        )
    latents = _positions.Statistics(LAGS, config.position_bins, config.seed)
    residual, direction = (_positions.Statistics(LAGS, config.position_bins, config.seed) for _ in range(2))
    documents = _positions.Documents()
    related = _profiles.Related(sae.W_dec)
    with torch.no_grad():
        contexts = _heldout.activations(target, model, config.n_contexts, config.context_size, config.batch_contexts)
        for number, (x_CTD, special_CT) in enumerate(contexts):
            # a few contexts at a time: wide SAEs have 32 MiB of latents in each
            few = max(1, AT_ONCE // (x_CTD.shape[1] * sae.cfg.d_sae))
            for x_cTD, special_cT in zip(x_CTD.split(few), special_CT.split(few), strict=True):
                acts_cTS = sae.encode(x_cTD).float()
                latents.add(acts_cTS, x_cTD, special_cT)
                related.add(acts_cTS, special_cT)
            if number * config.batch_contexts < config.n_contexts // 2:
                documents.add(x_CTD, special_CT)
                continue
            residual.add(x_CTD, x_CTD, special_CT)
            direction.add(x_CTD @ documents.direction_D1().to(x_CTD), x_CTD, special_CT)
    keep_S = latents.fires_S >= config.n_min
    groups = {"all": slice(None), **latent_groups(sae)}
    profiles = _profiles.describe(latents.profile, keep_S, config.seed)
    redundant_S = _profiles.redundant(sae.W_dec, profiles.band_S, keep_S)
    values: dict[str, dict[str, Any]] = {category: {name: None for name, _, _ in _NAMES} for category in CATEGORIES}
    curves: dict[str, dict[str, float]] = {}
    for group, part in groups.items():
        mask_S = torch.zeros_like(keep_S)
        mask_S[part] = keep_S[part]
        if mask_S.any():
            curves[f"{group} latents"] = latents.metrics(mask_S)
            values[group] |= curves[f"{group} latents"] | {
                "latents": float(mask_S.sum()),
                "redundancy": redundant_S[mask_S].double().mean().item(),
                **profiles.shares(mask_S),
            }
    for category, title, statistics in (
        ("residual", "residual stream", residual),
        ("document_direction", "document direction", direction),
    ):
        if statistics.contexts:
            curves[title] = statistics.linear_metrics()
            values[category] |= curves[title]
    failures = [] if keep_S.any() else [f"no latent fires on {config.n_min} tokens or more"]
    files = _profiles.files(latents, keep_S, profiles, related, curves) if keep_S.any() else {}
    output = _envelope.envelope(NAME, config, _result.finite(values), sae, target)
    return Evaluation(output, {"tokens": latents.tokens}, failures, files)


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners._run import run

    run(Path(__file__).stem)
