"""SAEBench's core evaluation, unchanged: KL, CE, explained variance, L0, shrinkage and density on held-out text.

The result holds `explained_variance_corrected` beside SAEBench's fields, because SAEBench's `explained_variance` is
wrong (`saebench.core` explains the fault). KL and CE scores are 1 for an SAE that changes nothing, and 0 for an SAE
that is as bad as setting the activations to zero.

Source: Karvonen et al., SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError
from sae_variants.common.memory import free_memory
from sae_variants.language_model.hooks import require_hook

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target

CORRECTED = "explained_variance_corrected"
DENSITY_DECADES, BINS_PER_DECADE = 6, 6
COPIES = 3
"""Numbers that SAEBench keeps for each token and latent of a batch, at least: before and after the activation
function, and whether it fires."""


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's core evaluation."""

    batch_size_prompts: int = 16
    """Contexts in a batch."""
    n_eval_reconstruction_batches: int = 200
    """Batches for KL and CE."""
    n_eval_sparsity_variance_batches: int = 2000
    """Batches for L0, explained variance, shrinkage and density."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    exclude_special_tokens_from_reconstruction: bool = True
    """Leave the activations of special tokens as they are."""


METRICS = (
    Metric(
        "model_performance_preservation",
        "ce_loss_score",
        "CE loss score",
        "higher",
        short="CE score",
        against_l0=True,
        trust="with care",
        why_trust="an SAE that was never trained keeps 0.6 of it, and soft_frozen_decoder, a control, is above "
        "stock:standard (results/reliability.md)",
    ),
    Metric("model_behavior_preservation", "kl_div_score", "KL score", "higher"),
    Metric(
        "",
        CORRECTED,
        "explained variance, corrected",
        "higher",
        short="explained variance",
        against_l0=True,
        trust="trusted",
        why_trust="as a measure of reconstruction, not of features: every trained SAE of the sandbox is above all "
        "controls (results/reliability.md)",
        section=UNSTRUCTURED,
    ),
    Metric("reconstruction_quality", "explained_variance", "explained variance, SAEBench's", "higher"),
    Metric("reconstruction_quality", "explained_variance_legacy", "explained variance, legacy", "higher"),
    Metric("reconstruction_quality", "cossim", "cosine similarity", "higher"),
    Metric("reconstruction_quality", "mse", "mean squared error", "lower"),
    Metric("sparsity", "l0", "L0", "neither"),
    Metric("shrinkage", "l2_ratio", "norm out / norm in", "neither"),
    Metric(
        "misc_metrics",
        "frac_alive",
        "alive latents",
        "higher",
        short="alive",
        trust="with care",
        why_trust="nearly all latents of an SAE that was never trained are alive",
    ),
    Metric("misc_metrics", "freq_over_10_percent", "share of latents that fire on > 10 % of tokens", "neither"),
)


class Core(Evaluator[Settings]):
    """SAEBench's core evaluation."""

    settings_class = Settings
    metrics = METRICS
    uses_following = True

    def host_output_class(self) -> type:
        """SAEBench's class of core results."""
        from sae_bench.evals.core.eval_output import CoreEvalOutput

        return CoreEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse hooks that SAEBench cannot replace: it reads the layer from the hook's name."""
        require_hook(target.hook_name, self.name)
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's core evaluation of one SAE, and add the corrected explained variance and the verdict."""
        from eval_runners.saebench.core import score_core

        _check_memory(sae.cfg.d_sae, settings, context.device)
        output, corrected, not_a_number = score_core(sae, target, asdict(settings), context)
        failures = [f"{name} is not a number" for name in not_a_number] + self.untrained_reasons(output)
        if not math.isfinite(corrected) or corrected < 0:
            failures.append(f"explained variance is {corrected:.3f}: worse than the mean activation")
        if not math.isfinite(corrected):
            not_a_number.append(CORRECTED)
        densities = _densities([latent["feature_density"] for latent in output["eval_result_details"]])
        unstructured = {CORRECTED: corrected, "not_a_number": not_a_number, "densities": densities}
        return Evaluation(unstructured=unstructured, failures=failures, host_output=output)

    def untrained_reasons(self, result: Result) -> list[str]:
        """No latent fires: L0 is 0."""
        sparsity = (result["eval_result_metrics"] or {}).get("sparsity") or {}
        return ["L0 is 0: no latent ever fires"] if sparsity.get("l0") == 0 else []

    def summary_lines(self, result: Result) -> list[str]:
        """Remarks on scores without meaning, and on an L0 that is not the requested one."""
        from eval_runners.saebench.remarks import core_remarks

        return core_remarks(result)


def _check_memory(d_sae: int, settings: Settings, device: str) -> None:
    """Raise a UsageError if SAEBench's batches of latents, which it keeps densely, do not fit in the free memory."""
    per_context = COPIES * 4 * settings.context_size * d_sae
    needed, free = per_context * settings.batch_size_prompts, free_memory(device)
    if needed > free:
        raise UsageError(
            f"core keeps all {d_sae} latents of {settings.batch_size_prompts} contexts at once, at least "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: give --batch-size-prompts "
            f"{max(1, int(free / per_context))}, or --core.batch-size-prompts in a suite"
        )


def _densities(shares: Sequence[float]) -> dict[str, Any]:
    """Histogram of firing rates over equal steps of log10(share of tokens), and the number of silent latents."""
    counts = [0] * (DENSITY_DECADES * BINS_PER_DECADE)
    for share in shares:
        if share > 0:
            position = math.floor((math.log10(share) + DENSITY_DECADES) * BINS_PER_DECADE)
            counts[min(max(position, 0), len(counts) - 1)] += 1
    return {
        "log10_from": -DENSITY_DECADES,
        "bins_per_decade": BINS_PER_DECADE,
        "counts": counts,
        "never": list(shares).count(0),
    }


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
