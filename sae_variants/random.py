"""random: an SAE that is never trained, the floor of every table.

Decoder rows are random unit vectors, the encoder is their transpose, nothing learns. Only the threshold follows the
stream, as BatchTopK's does, so that about `k` latents fire per token and L0 matches that of the SAEs beside it.
Saves as a stock SAELens `jumprelu`. See arXiv 2602.14111 for why such a row belongs on the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.registry.contract import TrainingHooks, VariantConfig
from sae_variants.registry.variants import register


@dataclass
class RandomTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    learns: ClassVar[bool] = False
    learns_by_gradient: ClassVar[bool] = False

    k: float = 32  # type: ignore[assignment]
    """Latents that fire, per token, averaged over the batch."""
    decoder_init_norm: float | None = 1.0
    aux_loss_coefficient: float = 0.0
    topk_threshold_lr: float = 0.2
    """Step of the running mean that sets the threshold; nothing else moves, so it may be large."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "random_baseline"


@register(RandomTrainingSAEConfig)
class RandomTrainingSAE(TrainingHooks, BatchTopKTrainingSAE):
    cfg: RandomTrainingSAEConfig  # type: ignore[assignment]

    @override
    def get_activation_fn(self) -> BatchTopK:
        return BatchTopK(self.cfg.k)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        output.loss = output.loss.detach() + 0.0 * self.b_dec.sum()
        return output
