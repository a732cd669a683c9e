"""Are the upper latents of a two-level SAE sums of their children?

R² is the share of the variance of an upper latent's activation that lower latents explain by least squares, fitted on
the first half of the held-out contexts and scored on the second. It is measured for the best 1, 3 and 5 of the latent's
children (children), of another upper latent's children (another), and of all lower latents (any). The best are those
that correlate most with the upper latent on the first half. A child of an upper latent is a lower latent whose parent
it is.

The decoder cosine is that of the upper latent's decoder row with the sum of its children's rows, weighted by the
links from the upper latent to them. All numbers are means over upper latents; one without children counts with an R²
and a cosine of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Direction, Evaluation, Evaluator, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens import HookedTransformer

    from sae_variants.language_model.target import Target
    from sae_variants.training.plan import Plan

SUPPORTED_SAES = "composition is for SAEs of two levels, such as hierarchical"
KS = (1, 3, 5)
"""Numbers of lower latents that explain an upper one together."""


@dataclass(frozen=True)
class Settings:
    """Settings of the composition of upper latents."""

    n_contexts: int = 256
    """Held-out contexts, half of them to fit on."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    n_min: int = 10
    """Tokens of each half on which an upper latent must fire to be measured."""
    most: int = 1024
    """Upper latents that are measured at most, sampled at random."""
    seed: int = 0
    """Seed of the sample."""


_EXPLAINED_BY: dict[str, tuple[str, Direction]] = {
    "children": ("its children", "higher"),
    "another": ("another's children", "neither"),
    "any": ("any lower latents", "neither"),
}
METRICS = (
    *(
        Metric(
            category,
            f"r2_{k}",
            f"R² from the best {k} of {latents}",
            better,
            short=f"R², {k} of {latents}" if category == "children" or k == 1 else "",
            column=f"{category}.r2_{k}",
        )
        for category, (latents, better) in _EXPLAINED_BY.items()
        for k in KS
    ),
    Metric("children", "cosine", "decoder cosine with its children's sum", "higher", short="decoder cosine"),
    Metric("children", "size", "children of an upper latent that has any", "neither"),
    Metric("children", "childless", "share of upper latents without a child that fires", "lower", short="childless"),
    Metric("children", "latents", "upper latents measured", "neither"),
)


class Composition(Evaluator[Settings]):
    """Upper latents explained by their children."""

    settings_class = Settings
    metrics = METRICS
    version = 2

    def why_unsupported(self, plan: Plan, settings: Settings) -> str:
        """The variant has one level, or one level of it is requested."""
        from sae_variants.registry.variants import find_variant
        from sae_variants.two_level.config import TwoLevelTrainingSAEConfig

        has_two_levels = issubclass(find_variant(plan.name).config_class, TwoLevelTrainingSAEConfig)
        return "" if has_two_levels and not plan.part else SUPPORTED_SAES

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Explain upper latents by lower ones, fitted on the first half of the contexts and scored on the second."""
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.composition import explain_upper_latents
        from sae_variants.two_level.saved import TwoLevelSAE

        require_finite_weights(sae)
        if not isinstance(sae, TwoLevelSAE):
            raise UsageError(SUPPORTED_SAES)
        halves = _split_contexts(target, context.model, settings)
        values = explain_upper_latents(sae, halves, ks=KS, n_min=settings.n_min, most=settings.most, seed=settings.seed)
        return Evaluation(values, failures=[] if values["children.latents"] else ["no upper latent fires often enough"])


def _split_contexts(target: Target, model: HookedTransformer, settings: Settings) -> list[Tensor]:
    """Activations [N, D] of the first and of the second half of the held-out contexts, without special tokens.

    What is left of the first half's last document is in neither, unless that is more than half of the second half.
    """
    import torch

    from eval_runners.data.heldout import heldout_activations

    batches = list(heldout_activations(target, model, settings.n_contexts, settings.context_size))
    x_CTD, special_CT = (torch.cat(parts) for parts in zip(*batches, strict=True))
    if len(x_CTD) < 2:
        raise UsageError("two held-out contexts at least are needed: raise --n-contexts or lower --context-size")
    half, counted_CT = len(x_CTD) // 2, ~special_CT
    special_N, counted_N = special_CT[half:].flatten(), counted_CT[half:].flatten()
    after_a_separator_N = special_N.cumsum(0) > 0
    of_new_documents_N = counted_N & after_a_separator_N
    if 2 * of_new_documents_N.sum() >= counted_N.sum():
        counted_N = of_new_documents_N
    return [x_CTD[:half][counted_CT[:half]], x_CTD[half:].flatten(0, 1)[counted_N]]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
