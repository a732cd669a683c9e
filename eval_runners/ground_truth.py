"""Does an SAE find the true features of a synthetic model, whose features are known?

The first numbers are those of SAELens' own evaluation. A latent is compared with the feature whose direction
is nearest to its decoder row, as a detector of that feature; MCC is the mean cosine of the best one-to-one matching of
decoder rows and directions. F1 of logistic probes on the activations bounds what a linear detector reaches.

The others answer what each family of variants claims:

- Recall of features by tenth of firing rate and of strength: which features does a balance of frequency and magnitude
  lose? The detector of a feature is the latent whose decoder row is nearest to its direction.
- Tree: the parents that an SAE with two levels learned, against the true tree. Where an SAE learns no tree, the parent
  of a latent is the more frequent one whose firing correlates most with its own (φ of at least 0.2), so that a tree
  which is learned has to beat one that is counted. The adjusted Rand index compares groups of latents with one parent,
  or clusters of the decoder rows of a flat SAE, with the true trees.
- Persistence, on a target with half-lives: AUROC of a feature's half-life for "its latent is slow". Without slow
  latents, the most persistent twentieth on the same tokens stands for them. Another AUROC compares slow latents with as
  many others of the same firing rates, so that frequency cannot pass for persistence.

Source: SynthSAEBench, arXiv 2602.14687.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Curve, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from eval_runners.measures.true_features import FeatureCounts
    from sae_variants.language_model.target import Target

KEYS = {"rate": "firing rate", "strength": "strength"}
"""What features are sorted by for their recall by tenths."""

LEAST_TOKENS = 1_000
"""Tokens of the smallest sample that is scored."""
TRUSTED: Any = {
    "trust": "trusted",
    "why_trust": "at the true L0 trained SAEs are above all controls (results/ground_truth.md)",
}
UNRANKED: Any = {
    "trust": "not for ranking",
    "why_trust": "soft_frozen_decoder, a control, is above stock:batchtopk and others (results/ground_truth.md)",
}
CARE: Any = {
    "trust": "with care",
    "why_trust": "soft_frozen_decoder, a control, is above some trained SAEs (results/ground_truth.md)",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison with the true features."""

    n_contexts: int = 512
    """Contexts of the sample on which firing is compared."""
    context_size: int = 128
    """Tokens in a context."""
    probe_contexts: int = 256
    """Contexts on which the logistic probes are fitted, and as many on which they are scored."""
    persistent_share: float = 0.05
    """Share of the latents that stands for the slow ones where an SAE has none, above 0 and at most 1; by default
    as many as `temporal` has."""
    seed: int = 0
    """Seed of the samples, which no training sees."""


def _metrics() -> Iterator[Metric]:
    probe = (("logistic probe", "ceiling.f1"),)
    yield Metric(
        "recovery", "mcc", "mean correlation coefficient with the true features", "higher", short="MCC", **TRUSTED
    )
    yield Metric(
        "recovery", "f1", "F1 of latents as detectors of features", "higher", short="F1", references=probe, **UNRANKED
    )
    yield Metric("recovery", "precision", "precision of latents", "higher")
    yield Metric("recovery", "recall", "recall of latents", "higher")
    yield Metric("recovery", "uniqueness", "latents with a feature of their own", "higher", short="unique")
    yield Metric("recovery", "explained_variance", "explained variance", "higher", short="explained variance", **CARE)
    yield Metric("recovery", "dead", "dead latents", "lower", short="dead")
    yield Metric("recovery", "shrinkage", "norm out / norm in", "neither")
    yield Metric("recovery", "l0", "L0", "neither")
    yield Metric("recovery", "true_l0", "true L0", "neither")
    yield Metric(
        "features", "f1_all", "F1 over all features, found or not", "higher", short="F1, all features", **UNRANKED
    )
    for key, name in KEYS.items():
        for tenth in range(1, 11):
            curve = Curve(f"recall of features by {name}", f"tenth of the features by {name}", tenth)
            yield Metric("features", f"recall_{key}_{tenth}", f"recall, tenth {tenth} by {name}", "higher", curve=curve)
    yield Metric("tree", "parent_accuracy", "children under their true parent", "higher", **UNRANKED)
    yield Metric("tree", "edge_precision", "precision of the tree's edges", "higher", **UNRANKED)
    yield Metric("tree", "edge_recall", "recall of the tree's edges", "higher", **UNRANKED)
    yield Metric("tree", "edge_f1", "F1 of the tree's edges", "higher", short="edge F1", **UNRANKED)
    yield Metric("tree", "ari", "adjusted Rand index of groups and true trees", "higher", short="ARI")
    yield Metric("persistence", "auroc", "AUROC of half-life, slow latents", "higher", short="half-life AUROC")
    yield Metric("persistence", "rate_matched_auroc", "the same against other latents of their rate", "higher")
    yield Metric("persistence", "measured_auroc", "AUROC of half-life, latents measured most persistent", "higher")
    yield Metric("persistence", "longest_cosine", "best cosine of the longest-lived tenth, all latents", "higher")
    yield Metric("persistence", "slow_longest_cosine", "best cosine of the longest-lived tenth, slow latents", "higher")


METRICS = tuple(_metrics())


class GroundTruth(Evaluator[Settings]):
    """Comparison with the true features of a synthetic model."""

    version = 2
    settings_class = Settings
    metrics = METRICS
    needs_truth = True
    default_target = "synthetic"

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the share of persistent latents and the size of the sample."""
        if not 0 < settings.persistent_share <= 1:
            raise UsageError(f"--persistent-share must be above 0 and at most 1, not {settings.persistent_share}")
        if (tokens := settings.n_contexts * settings.context_size) < LEAST_TOKENS:
            raise UsageError(
                f"--n-contexts {settings.n_contexts} of --context-size {settings.context_size} are {tokens} tokens, "
                f"on which most features never fire: give at least {LEAST_TOKENS:,}"
            )
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Compare latents with features, and the structures that variants claim with the true ones."""
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.feature_persistence import describe_persistence
        from eval_runners.measures.probe_ceiling import cached_ceiling
        from eval_runners.measures.true_features import Sample, count_firing, measure_recovery
        from eval_runners.measures.true_tree import MOST_PAIRED, describe_tree, has_no_tree

        require_finite_weights(sae)
        data = context.truth
        assert data is not None
        sample = Sample(settings.n_contexts, settings.context_size, settings.seed)
        counts_tree = data.model.hierarchy is not None and has_no_tree(sae)
        with_pairs = counts_tree and sae.cfg.d_sae <= MOST_PAIRED
        if counts_tree and not with_pairs:
            print(f"a tree of {sae.cfg.d_sae} latents is not counted, only of at most {MOST_PAIRED}", file=sys.stderr)
        recovery, counts = measure_recovery(sae, data, sample, with_pairs)
        values = {f"recovery.{name}": value for name, value in recovery.items()}
        values["ceiling.f1"] = cached_ceiling(
            data, target.model_name, settings.probe_contexts, settings.context_size, settings.seed
        )
        values |= {f"features.{name}": value for name, value in _by_feature(counts).items()}
        lower = None
        if data.model.hierarchy is not None and (encode_lower := getattr(sae, "encode_lower", None)):
            lower = count_firing(encode_lower, sae.W_dec_lower, data, sample)  # type: ignore[arg-type]
        values |= {f"tree.{name}": value for name, value in describe_tree(sae, data, counts, lower).items()}
        persistence = describe_persistence(sae, data, counts, settings.persistent_share)
        values |= {f"persistence.{name}": value for name, value in persistence.items()}
        failures = ["L0 is 0: no latent ever fires"] if recovery["l0"] == 0 else []
        if recovery["explained_variance"] < 0:
            failures.append(
                f"explained variance is {recovery['explained_variance']:.3f}: worse than the mean activation"
            )
        return Evaluation(values, {"model_origin": data.origin}, failures)

    def untrained_reasons(self, result: Result) -> list[str]:
        """No latent fires: L0 is 0."""
        recovery = (result["eval_result_metrics"] or {}).get("recovery") or {}
        return ["L0 is 0: no latent ever fires"] if recovery.get("l0") == 0 else []


def _by_feature(counts: FeatureCounts) -> dict[str, float]:
    """F1 over all features, and recall by tenths of firing rate and of strength."""
    from eval_runners.measures.true_features import mean_by_decile

    values = {"f1_all": float(counts.f1_F.mean())}
    for key, key_F in (("rate", counts.feature_F), ("strength", counts.mean_strength_F)):
        deciles = mean_by_decile(counts.recall_F, key_F)
        values |= {f"recall_{key}_{i}": mean for i, mean in enumerate(deciles, start=1)}
    return values


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
