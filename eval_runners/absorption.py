"""SAEBench's feature absorption, unchanged: do latents for first letters fail to fire where a narrower one does?

Probes of the language model find the first letter of a word. Where they do and the latents of that letter do not fire,
another latent aligned with the probe has absorbed it, such as one for a single word. The full score is the share of
words with one such latent; the mean score also counts parts. SAEBench's maintainers say that it means something from
1 B parameters and 16k latents on, and its mean score changed tenfold between releases: it is that of sae-bench 0.6.

Source: Chanin et al., arXiv 2409.14507; SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target
    from sae_variants.training.plan import Plan


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's feature absorption."""

    f1_jump_threshold: float = 0.03
    """Gain of F1 from which another latent counts as one of a letter."""
    max_k_value: int = 10
    """Largest number of latents of a letter."""
    prompt_template: str = "{word} has the first letter:"
    """Prompt, of which {word} is the word."""
    prompt_token_pos: int | None = None
    """Position of the word from the end, such as -6; the default is what the tokenizer says."""
    llm_batch_size: int = 32
    """Prompts in a batch of the language model."""
    k_sparse_probe_num_epochs: int = 50
    """Passes over the words when probes on latents are fitted."""
    min_GT_probe_f1: float = 0.6
    """F1 of the language model's probe from which a letter counts."""
    min_feats_for_eval: int = 20
    """Letters that must count."""
    random_seed: int = 42
    """Seed of the words and of the probes."""


METRICS = (
    Metric(
        "mean",
        "mean_full_absorption_score",
        "full absorption",
        "lower",
        short="absorption",
        trust="with care",
        why_trust="means something from 1 B parameters and 16k latents on, by SAEBench's maintainers",
    ),
    Metric(
        "mean",
        "mean_absorption_fraction_score",
        "absorbed fraction",
        "lower",
        trust="not for ranking",
        why_trust="changed tenfold between releases of SAEBench; compare within one release only",
    ),
    Metric("mean", "mean_num_split_features", "latents of a letter", "neither"),
)


class Absorption(Evaluator[Settings]):
    """SAEBench's feature absorption."""

    settings_class = Settings
    metrics = METRICS
    eval_type = "absorption_first_letter"
    detail = "letter"

    def host_output_class(self) -> type:
        """SAEBench's class of these results."""
        from sae_bench.evals.absorption.eval_output import AbsorptionEvalOutput

        return AbsorptionEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse tokenizers of few words, and hooks at which SAEBench does not read: it takes the residual stream."""
        if not target.hook_name.endswith(".hook_resid_post"):
            raise UsageError(f"absorption reads blocks.N.hook_resid_post only, and {target.hook_name} is another hook")
        if settings.prompt_token_pos is not None and settings.prompt_token_pos >= 0:
            raise UsageError(f"--prompt-token-pos counts from the end: below 0, not {settings.prompt_token_pos}")
        if "{word}" not in settings.prompt_template:
            raise UsageError(f"--prompt-template must contain {{word}}, unlike {settings.prompt_template!r}")
        from eval_runners.saebench.absorption import check_words
        from sae_variants.language_model.limits import model_limits

        if tokenizer := model_limits(target.model_name).tokenizer:
            check_words(tokenizer)
        return settings, {}

    def why_unsupported(self, plan: Plan, settings: Settings) -> str:
        """The SAE has fewer latents than a letter may have."""
        from eval_runners.saebench.shared import too_many_of

        return too_many_of("--max-k-value", settings.max_k_value, plan.sized["d_sae"])

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's feature absorption of one SAE."""
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.saebench.absorption import score_absorption
        from eval_runners.saebench.shared import too_many_of

        require_finite_weights(sae)
        if reason := too_many_of("--max-k-value", settings.max_k_value, sae.cfg.d_sae):
            raise UsageError(reason)
        output, fires = score_absorption(sae, target, asdict(settings), context)
        return Evaluation(failures=[] if fires else ["no latent fires on any word"], host_output=output)

    def detail_rows(self, result: Result) -> Iterator[dict[str, Any]]:
        """One row per letter."""
        for detail in result["eval_result_details"]:
            yield {
                "letter": detail["first_letter"],
                "full absorption": detail["full_absorption_rate"],
                "absorbed fraction": detail["mean_absorption_fraction"],
                "latents": detail["num_split_features"],
                "words": detail["num_probe_true_positives"],
            }


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
