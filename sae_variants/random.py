"""An SAE that is never trained: the lower baseline of every table.

    f = BatchTopK_k((x - b) W_dec^T),      x̂ = f W_dec + b,      rows of W_dec random unit vectors, b = 0

Nothing is learned. Only the threshold follows the stream, as that of BatchTopK does, so that about `k` latents fire per
token and L0 matches that of the SAEs in the same table. The SAE is saved as a stock SAELens `jumprelu`. Why such a row
belongs in every table is explained in arXiv 2602.14111.

Shapes: x, b [D], f [S], W_dec [S, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.registry.batch_topk import BatchTopKVariant
from sae_variants.registry.contract import VariantConfig
from sae_variants.registry.variants import register


@dataclass
class RandomTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    """Config of `random`."""

    learns: ClassVar[bool] = False
    learns_by_gradient: ClassVar[bool] = False

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    decoder_init_norm: float | None = 1.0
    """Norm of decoder rows."""
    aux_loss_coefficient: float = 0.0
    """Weight of AuxK, which has no effect, because nothing is learned."""
    topk_threshold_lr: float = 0.2
    """Rate of the running mean that sets the threshold; it may be large, because nothing else changes."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "random_baseline"


@register(RandomTrainingSAEConfig)
class RandomTrainingSAE(BatchTopKVariant):
    """BatchTopK whose loss has no gradient."""

    cfg: RandomTrainingSAEConfig  # type: ignore[assignment]

    @override
    def get_activation_fn(self) -> BatchTopK:
        return BatchTopK(self.cfg.k)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        output.loss = output.loss.detach() + 0.0 * self.b_dec.sum()
        return output
