"""core: SAEBench's core evaluation, unchanged: KL, CE, explained variance, L0, shrinkage, density, on held-out text.

Beside SAEBench's own fields stands `explained_variance_corrected`, because SAEBench's `explained_variance` is wrong
(see `_core._Variance`). Scores of KL and CE are 1 for the SAE that changes nothing and 0 for the one that is as
bad as zeroing the activations.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from eval_runners.contract.contract import Evaluation, Metric

_R = "eval_result_metrics."
_QUALITY = _R + "reconstruction_quality."
CORRECTED = "explained_variance_corrected"
DENSITY_DECADES, BINS_PER_DECADE = 6, 6


@dataclass(frozen=True)
class EvalConfig:
    batch_size_prompts: int = 16
    """Contexts in a batch."""
    n_eval_reconstruction_batches: int = 200
    """Batches for KL and CE."""
    n_eval_sparsity_variance_batches: int = 2000
    """Batches for L0, explained variance, shrinkage, density."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    exclude_special_tokens_from_reconstruction: bool = True
    """Leave the activations of special tokens as they are."""


METRICS = (
    Metric("ce_loss_score", "CE loss score", "higher", _R + "model_performance_preservation.ce_loss_score",
           "CE score", against_l0=True),
    Metric("kl_div_score", "KL score", "higher", _R + "model_behavior_preservation.kl_div_score"),
    Metric(CORRECTED, "explained variance, corrected", "higher", f"eval_result_unstructured.{CORRECTED}",
           "explained variance", against_l0=True),
    Metric("explained_variance", "explained variance, SAEBench's", "higher", _QUALITY + "explained_variance"),
    Metric("explained_variance_legacy", "explained variance, legacy", "higher", _QUALITY + "explained_variance_legacy"),
    Metric("cossim", "cosine similarity", "higher", _QUALITY + "cossim"),
    Metric("mse", "mean squared error", "lower", _QUALITY + "mse"),
    Metric("l0", "L0", "neither", _R + "sparsity.l0"),
    Metric("l2_ratio", "norm out / norm in", "neither", _R + "shrinkage.l2_ratio"),
    Metric("frac_alive", "alive latents", "higher", _R + "misc_metrics.frac_alive", "alive"),
    Metric("freq_over_10_percent", "share of latents that fire on > 10 % of tokens", "neither",
           _R + "misc_metrics.freq_over_10_percent"),
)  # fmt: skip


def output_class() -> type:
    from sae_bench.evals.core.eval_output import CoreEvalOutput

    return CoreEvalOutput


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """SAEBench's output of one SAE, the corrected explained variance, and what speaks against the SAE being trained."""
    from eval_runners.saebench.core import score_core

    output, corrected, missing = score_core(sae, model, target, asdict(config), device, target.dtype)
    failures = [f"{name} is not a number" for name in missing] + untrained(output)
    if not math.isfinite(corrected) or corrected < 0:
        failures.append(f"explained variance is {corrected:.3f}: worse than the mean activation")
    if not math.isfinite(corrected):
        missing.append(CORRECTED)
    ours = {CORRECTED: corrected, "not_a_number": missing, "densities": _densities(output["eval_result_details"])}
    return Evaluation(output, ours, failures)


def untrained(result: dict[str, Any]) -> list[str]:
    """What in a core result says that the SAE is not trained."""
    sparsity = (result["eval_result_metrics"] or {}).get("sparsity") or {}
    return ["L0 is 0: no latent ever fires"] if sparsity.get("l0") == 0 else []


def _densities(latents: list[dict[str, Any]]) -> dict[str, Any]:
    """How many latents fire how often: counts over equal steps of log10 of the share of tokens, and those never."""
    fire = [latent["feature_density"] for latent in latents]
    counts = [0] * (DENSITY_DECADES * BINS_PER_DECADE)
    for density in fire:
        if density > 0:
            at = math.floor((math.log10(density) + DENSITY_DECADES) * BINS_PER_DECADE)
            counts[min(max(at, 0), len(counts) - 1)] += 1
    return {
        "log10_from": -DENSITY_DECADES,
        "bins_per_decade": BINS_PER_DECADE,
        "counts": counts,
        "never": fire.count(0),
    }


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
