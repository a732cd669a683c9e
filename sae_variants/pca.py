"""The first k principal components as latents: a baseline for a linear map of that rank.

    x̂ = μ + Σ_i (relu(v_i·(x - μ)) - relu(-v_i·(x - μ))) v_i,      i = 1 ... k

There is no gradient. Mean μ and covariance of the stream are accumulated, and the saved directions v are the
eigenvectors of the largest eigenvalues. Latents of a ReLU SAE are not negative, so a component is a pair of latents, of
which one fires: L0 is k, which is per token. All latents beyond the first 2 k never fire. The SAE is saved as a stock
SAELens `standard`. SAEBench (arXiv 2503.09532) has such a row to show how much of a score a few directions give.

Shapes: N tokens, D = d_in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_variants.registry.contract import TrainingHooks, VariantConfig
from sae_variants.registry.variants import register


@dataclass
class PcaTrainingSAEConfig(VariantConfig, StandardTrainingSAEConfig):
    """Config of `pca`."""

    learns_by_gradient: ClassVar[bool] = False

    k: int = 32
    """Components, each a pair of latents; at most d_in and at most d_sae / 2."""
    l1_coefficient: float = 0.0
    """Weight of the L1 penalty, which has no effect, because nothing is learned by gradient."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "pca_baseline"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_activations not in ("none", "expected_average_only_in"):
            raise ValueError(
                f"normalize_activations must be none or expected_average_only_in, not {self.normalize_activations!r}"
            )
        if not 0 < self.k <= self.d_sae // 2:
            raise ValueError(f"k = {self.k} components need {2 * self.k} latents, d_sae is {self.d_sae}")


@register(PcaTrainingSAEConfig)
class PcaTrainingSAE(TrainingHooks, StandardTrainingSAE):
    """Accumulator of mean and covariance."""

    cfg: PcaTrainingSAEConfig  # type: ignore[assignment]
    rows: Tensor
    sum_D: Tensor
    products_DD: Tensor

    def __init__(self, cfg: PcaTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if cfg.k > cfg.d_in:
            raise ValueError(f"there are no {cfg.k} components of {cfg.d_in} dimensions")
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.W_dec.device}
        self.register_buffer("rows", torch.zeros((), **options))
        self.register_buffer("sum_D", torch.zeros(cfg.d_in, **options))
        self.register_buffer("products_DD", torch.zeros(cfg.d_in, cfg.d_in, **options))

    @override
    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x_ND = step_input.sae_in.detach().to(self.sum_D)
        self.rows += len(x_ND)
        self.sum_D += x_ND.sum(0)
        self.products_DD += x_ND.T @ x_ND
        output = super().training_forward_pass(step_input)
        output.loss = output.loss.detach() + 0.0 * self.b_dec.sum()
        return output

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.sum_D /= scaling_factor
        self.products_DD /= scaling_factor**2

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for statistic in ("rows", "sum_D", "products_DD"):
            del state_dict[statistic]
        mean_D, components_kD = self.components()
        signed = torch.cat([components_kD, -components_kD])
        W_dec, W_enc, b_enc = (state_dict[name].clone() for name in ("W_dec", "W_enc", "b_enc"))
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        W_enc[:], b_enc[:] = 0.0, -1.0
        W_dec[: len(signed)] = signed.to(W_dec)
        W_enc[:, : len(signed)] = signed.T.to(W_enc)
        b_enc[: len(signed)] = 0.0 if self.cfg.apply_b_dec_to_input else -(signed @ mean_D).to(b_enc)
        state_dict |= {"W_dec": W_dec, "W_enc": W_enc, "b_enc": b_enc, "b_dec": mean_D.to(state_dict["b_dec"])}

    def components(self) -> tuple[Tensor, Tensor]:
        """Return the mean [D] and the first k principal directions [k, D] of all rows so far, in float64."""
        mean_D = self.sum_D / self.rows.clamp(min=1)
        covariance_DD = self.products_DD / self.rows.clamp(min=1) - torch.outer(mean_D, mean_D)
        return mean_D, torch.linalg.eigh(covariance_DD).eigenvectors.flip(1).T[: self.cfg.k].contiguous()
