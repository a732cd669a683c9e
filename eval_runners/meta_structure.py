"""SAEBench's meta-structure, unchanged: how much of the decoder does a smaller SAE trained on its rows explain?

A BatchTopK SAE with a quarter of the latents is trained on the decoder rows. Rows that share directions are explained
better. SAEBench gives the time of that training as a metric; it is kept, and left out of tables.

Source: SAEBench; meta-SAEs are those of Bussmann et al., arXiv 2502.04878.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Evaluation, Evaluator, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's meta-structure."""

    width_ratio: float = 0.25
    """Latents of the SAE on decoder rows, as a share of the SAE's own."""
    k: int = 4
    """Its latents per row."""
    train_steps: int = 1500
    """Its training steps."""
    train_batch_size: int = 1024
    """Decoder rows in a batch."""
    learning_rate: float = 5e-4
    """Its learning rate."""
    random_seed: int = 42
    """Seed of its weights and batches."""


METRICS = (
    Metric(
        "meta_structure",
        "decoder_fraction_variance_explained",
        "variance of decoder rows that a smaller SAE explains",
        "neither",
        short="meta-structure",
    ),
    Metric("meta_structure", "final_reconstruction_mse", "mean squared error of decoder rows", "neither"),
)


class MetaStructure(Evaluator[Settings]):
    """SAEBench's meta-structure."""

    settings_class = Settings
    metrics = METRICS
    eval_type = "meta_structure_decoder_variance"

    def host_output_class(self) -> type:
        """SAEBench's class of these results."""
        from sae_bench.evals.meta_structure.eval_output import MetaStructureEvalOutput

        return MetaStructureEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the width."""
        if not settings.width_ratio > 0:
            raise UsageError(f"--width-ratio must be above 0, not {settings.width_ratio}")
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's meta-structure of one SAE."""
        from sae_bench.evals.meta_structure import main
        from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.saebench.run import in_own_folder, run_eval

        require_finite_weights(sae)
        with in_own_folder(main, context, settings.random_seed) as folder:
            config = MetaStructureEvalConfig(**asdict(settings))
            output = run_eval(main, config, sae, context, folder)
        is_broken = output["eval_result_metrics"]["meta_structure"]["final_reconstruction_mse"] == 0
        return Evaluation(failures=["all decoder rows are 0"] if is_broken else [], host_output=output)


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
