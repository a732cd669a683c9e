"""TopK with k latents per token and half of SAELens' auxiliary loss (arXiv 2406.04093)."""

from dataclasses import dataclass

from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

from sae_variants import VariantConfig, register


@dataclass
class GentleConfig(VariantConfig, TopKTrainingSAEConfig):
    aux_loss_coefficient: float = 0.5


@register(GentleConfig)
class Gentle(TopKTrainingSAE): ...
