"""BatchTopK whose encoder encodes again what its first code left, with nested reconstructions as an option.

    f_0 = BatchTopK((x - b) W_enc + b_enc)
    f = BatchTopK((x + η (x - x̂_0) - b) W_enc + b_enc)                  x̂_0 = f_0 W_dec + b
    L = |x - f W_dec - b|² + Σ_w |x - f[:w] W_dec[:w] - b|² + AuxK       over the widths w, if any

With `refine` = T, the second line is applied T times, each to the code before. Many latents share few dimensions, so a
single encoding sees each of them partly in the others; a second one sees what the first explained twice, or not at all.
No parameter is added. `k` is per token, averaged over the batch.

The SAE is saved as the architecture `refined`, with a threshold for each encoding; with T = 0 as a stock `jumprelu`.

Source: LISTA (Gregor and LeCun, ICML 2010) for the step, with the matrices of the SAE itself; the base is BatchTopK
(arXiv 2412.06410), the nested reconstructions are those of Matryoshka SAEs (arXiv 2503.17547).

Shapes: N tokens, D = d_in, S = d_sae, T refinement steps, w latents of a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.errors import squared_error
from sae_variants.ops.mostly_zero import decode_sparse
from sae_variants.refinement.config import RefinementConfig
from sae_variants.refinement.training import RefinedBatchTopK
from sae_variants.registry.variants import register


@dataclass
class RefinedTrainingSAEConfig(RefinementConfig, BatchTopKTrainingSAEConfig):
    """Config of `refined`."""

    added: ClassVar[Mapping[str, Any]] = {}

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    refine: int = 1
    """Refinement steps of the encoder: each encodes what the code before left, at the cost of another encoding."""
    matryoshka_widths: list[int] = field(default_factory=list)
    """Numbers of first latents that also reconstruct the input alone, such as 128,256,512; none if empty."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "refined_batchtopk"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        widths = self.matryoshka_widths
        if any(not 0 < width <= self.d_sae for width in widths) or sorted(set(widths)) != widths:
            raise ValueError(f"matryoshka_widths must rise from above 0 to at most d_sae = {self.d_sae}, not {widths}")


@register(RefinedTrainingSAEConfig)
class RefinedTrainingSAE(RefinedBatchTopK):
    """BatchTopK in training, with a refined encoder."""

    in_shards: ClassVar[dict[str, Any] | None] = {"matryoshka_widths": []}

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        rows_SD, out_ND, first = self._rows(), self.b_dec, 0
        for width in self.cfg.matryoshka_widths:
            if width < self.cfg.d_sae:  # all latents together are the reconstruction itself
                part = slice(first, width)
                out_ND = out_ND + decode_sparse(feature_acts[:, part].contiguous(), rows_SD[part])
                losses[f"inner_mse_loss_{width}"] = squared_error(step_input.sae_in, out_ND)
                first = width
        return losses
