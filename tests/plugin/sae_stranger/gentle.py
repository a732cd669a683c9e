"""gentle: TopK, k latents per token, with half of SAELens' auxiliary loss (arXiv 2406.04093)."""

from dataclasses import dataclass

from sae_lens.saes.topk_sae import TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

from sae_variants import register


@dataclass
class GentleConfig(TopKTrainingSAEConfig):
    aux_loss_coefficient: float = 0.5

    @classmethod
    def architecture(cls):
        return "gentle_topk"

    def get_inference_config_class(self):
        return TopKSAEConfig  # only training differs: it saves as a stock `topk`


@register(GentleConfig)
class Gentle(TopKTrainingSAE): ...
