"""topk: k latents fire per token, by the published recipe of large k-sparse autoencoders.

    f = ReLU(TopK_k((x - b) W_enc + b_enc)),      x̂ = f W_dec + b
    L = |x - x̂|² / var(x) + aux_coefficient · |e - ê|² / var(e),      e = x - x̂ without gradient,

where ê is what the k_aux largest of the dead latents make of e, without b: AuxK. Gao et al. (arXiv 2406.04093): W_enc
begins as W_dec's transpose; rows of W_dec are of unit norm and their gradient has no part along them; b begins as the
geometric median of the first batch; a latent is dead once it has not fired for `dead_after_tokens`; k_aux is a power of
two near D / 2; the learning rate is proportional to 1 / √S; Adam's ε is 6.25e-10. Optional: a moving average of the
weights, and Multi-TopK, L(k) + L(multi_k) / 8, with which other numbers of latents can be used later.

Of the products only the encoder's is dense (`_sparse`). AuxK on all tokens costs as much as the rest of a step where
many latents are dead, and need not be taken on all (`aux_every`). Saves as a stock SAELens `topk`.

Under SAELens' own trainer the learning rate and Adam's ε are that trainer's.

Shapes: N tokens, D = d_in, S = d_sae, d dead latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.sparse import decode, encode, sparse_codes
from sae_variants.registry.contract import TrainingHooks, VariantConfig
from sae_variants.registry.variants import register

MULTI_SHARE = 1 / 8
"""Weight of the reconstruction from multi_k latents."""
MEDIAN_STEPS = 100
AVERAGED = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass
class SparseTopKTrainingSAEConfig(VariantConfig, TopKTrainingSAEConfig):
    k: int = 32
    """Latents that fire per token."""
    rescale_acts_by_decoder_norm: bool = False
    """Must be false: rows are of unit norm."""
    decoder_init_norm: float | None = 1.0
    """Norm of decoder rows at the start."""
    aux_loss_coefficient: float = 1 / 32
    """Weight of AuxK; 0 switches it off."""
    k_aux: int = 0
    """Dead latents that reconstruct what is left; 0: the power of two nearest to d_in / 2."""
    aux_every: int = 1
    """AuxK is taken on every so many-th token, others in each step: of more than 1 it costs less."""
    multi_k: int = 0
    """A larger k whose reconstruction counts by an eighth beside that of k; 0 switches it off, published is 4 k."""
    median_start: bool = True
    """Whether b begins as the geometric median of the first batch; at 0 otherwise."""
    unit_rows: bool = True
    """Whether decoder rows keep unit norm, and their gradient is taken off their own direction."""
    normalized_losses: bool = True
    """Whether squared errors are divided by the variance of what is reconstructed."""
    ema: float = 0.0
    """Weight of the past in a moving average of the weights, which is then what is saved; 0 switches it off."""
    learning_rate_width: int = 16384
    """d_sae at which the learning rate is the one given,"""
    learning_rate_power: float = 0.5
    """and it is proportional to d_sae to the power of minus this."""
    adam_epsilon: float = 6.25e-10
    """Adam's ε."""
    dead_after_tokens: int = 10_000_000
    """Tokens after which a latent that has not fired is dead."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_topk"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale_acts_by_decoder_norm:
            raise ValueError("rescale_acts_by_decoder_norm must be false: decoder rows are of unit norm")
        if self.use_sparse_activations:
            raise ValueError("use_sparse_activations must be false: activations are sparse already")
        if self.normalize_activations not in ("none", "expected_average_only_in"):
            raise ValueError(
                f"normalize_activations must be none or expected_average_only_in, not {self.normalize_activations!r}"
            )
        if self.multi_k and not self.k < self.multi_k <= self.d_sae:
            raise ValueError(f"multi_k must be above k = {self.k} and at most d_sae = {self.d_sae}, or 0")
        if self.aux_loss_coefficient < 0 or self.k_aux < 0 or self.aux_every < 1:
            raise ValueError("aux_loss_coefficient and k_aux must not be negative, and aux_every must be at least 1")
        if self.k_aux > self.d_sae:
            raise ValueError(f"k_aux must be at most d_sae = {self.d_sae}, not {self.k_aux}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, not {self.ema:g}")
        if self.learning_rate_power < 0:
            raise ValueError(f"learning_rate_power must not be negative, not {self.learning_rate_power:g}")
        if self.unit_rows and self.decoder_init_norm != 1:
            raise ValueError(f"decoder_init_norm must be 1, not {self.decoder_init_norm}, or unit_rows false")
        for name in ("learning_rate_width", "adam_epsilon", "dead_after_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")

    @property
    def dead_latents_used(self) -> int:
        """k_aux as it is."""
        return self.k_aux or 2 ** round(math.log2(max(1, self.d_in / 2)))


@register(SparseTopKTrainingSAEConfig)
class SparseTopKTrainingSAE(TrainingHooks, TopKTrainingSAE):
    cfg: Any
    tokens_since_fired: Tensor
    averaged_steps: Tensor

    def __init__(self, cfg: SparseTopKTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("tokens_since_fired", torch.zeros(cfg.d_sae, dtype=torch.long, device=self.device))
        if cfg.ema:
            self.register_buffer("averaged_steps", torch.zeros((), dtype=torch.long, device=self.device))
            for name in AVERAGED:
                self.register_buffer(f"average_{name}", torch.zeros_like(getattr(self, name).detach()))

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # its gradient comes latent by latent: stored like that, no product and no optimiser has to turn it
        self.W_enc = nn.Parameter(self.W_enc.data.T.contiguous().T)

    @property
    @override
    def adam_options(self) -> dict[str, Any]:
        """What whoever trains sets of Adam."""
        return {"eps": self.cfg.adam_epsilon, "fused": True, "foreach": False}

    @override
    def learning_rate_scale(self, step: int) -> float:
        """What the coming step's learning rate is multiplied by; whoever trains asks before each step."""
        return (self.cfg.learning_rate_width / self.cfg.d_sae) ** self.cfg.learning_rate_power

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss. `feature_acts` is a sparse tensor, `hidden_pre` the activations [N, k] that fire."""
        cfg, x = self.cfg, self.hook_sae_input(self.reshape_fn_in(step_input.sae_in.to(self.dtype)))
        x_ND = x.flatten(0, -2)
        if step_input.n_training_steps == 0:
            if cfg.median_start and not self.b_dec.any():
                self.b_dec.data[:] = geometric_median(x_ND)
        elif cfg.ema:
            self._average()
        if cfg.unit_rows:
            self.W_dec.data /= self.W_dec.data.norm(dim=1, keepdim=True).clamp(min=1e-12)
        tokens, dead_d = self._for_aux(step_input.n_training_steps, x_ND)
        values_Nk, ids_Nk, pre_nd = encode(
            x_ND, self.W_enc, self.b_enc, self.b_in, max(cfg.k, cfg.multi_k), tokens, dead_d
        )
        losses: dict[str, Tensor] = {}
        if cfg.multi_k:
            values_Nk, order = values_Nk.sort(dim=-1, descending=True)
            ids_Nk = ids_Nk.gather(-1, order)
            losses["multi_topk_loss"] = MULTI_SHARE * self.error(
                x_ND, decode(values_Nk, ids_Nk, self.W_dec, self.b_dec, unit_rows=cfg.unit_rows)[0]
            )
            values_Nk, ids_Nk = values_Nk[:, : cfg.k], ids_Nk[:, : cfg.k]
        self._count(values_Nk, ids_Nk)
        woken_d = ~self.dead_S[dead_d]  # fire in this step
        aux_nd = strongest(pre_nd.masked_fill(woken_d, -math.inf), cfg.dead_latents_used)
        out_ND, aux_nD = decode(values_Nk, ids_Nk, self.W_dec, self.b_dec, aux_nd, dead_d, cfg.unit_rows)
        losses = {"mse_loss": self.error(x_ND, out_ND), **losses}
        if cfg.aux_loss_coefficient:
            aux = self.aux_loss((x_ND - out_ND)[tokens], aux_nD) if len(dead_d) else out_ND.new_zeros(())
            losses["auxiliary_reconstruction_loss"] = cfg.aux_loss_coefficient * aux
        shape = x.shape[:-1]
        return TrainStepOutput(
            sae_in=x,
            sae_out=self.reshape_fn_out(self.hook_sae_recons(out_ND.view(x.shape)), self.d_head),
            feature_acts=sparse_codes(values_Nk.view(*shape, -1), ids_Nk.view(*shape, -1), cfg.d_sae),
            hidden_pre=values_Nk.view(*shape, -1),
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={
                "l0": lambda: (values_Nk > 0).sum(-1).float().mean().item(),
                "dead": lambda: self.dead_S.float().mean().item(),
            },
        )

    @property
    def b_in(self) -> Tensor:
        """What is taken off the input, [D]."""
        return self.b_dec if self.cfg.apply_b_dec_to_input else torch.zeros_like(self.b_dec)

    def error(self, wanted_ND: Tensor, found_ND: Tensor) -> Tensor:
        """Squared error, relative to predicting the mean; mean over tokens where losses are not normalised.

        0, and without gradient, where there is nothing to predict but the mean.
        """
        squares = (wanted_ND - found_ND).float().pow(2).sum()
        if not self.cfg.normalized_losses:
            return squares / len(wanted_ND)
        wanted_ND = wanted_ND.detach().float()
        total = (wanted_ND - wanted_ND.mean(0)).pow(2).sum()
        has_any = total > 1e-12 * wanted_ND.pow(2).sum()
        return squares * torch.where(has_any, 1 / total.clamp(min=1e-30), 0.0)

    def aux_loss(self, e_nD: Tensor, found_nD: Tensor) -> Tensor:
        """AuxK: the error of what dead latents make of what the others leave, e_nD; 0 where that is no number."""
        e_nD = e_nD.detach()
        return self.error(e_nD, found_nD) if e_nD.isfinite().all() else found_nD.new_zeros(())

    @property
    def dead_S(self) -> Tensor:
        """Mask [S] of the dead latents."""
        return self.tokens_since_fired > self.cfg.dead_after_tokens

    def _for_aux(self, step: int, x_ND: Tensor) -> tuple[slice, Tensor]:
        """Tokens on which AuxK is taken in this step, and the latents [d] that are dead before it."""
        every = self.cfg.aux_every
        dead_d = self.dead_S.nonzero().squeeze(1) if self.cfg.aux_loss_coefficient else x_ND.new_empty(0).long()
        return slice(step % every, None, every), dead_d

    @torch.no_grad()
    def _count(self, values_Nk: Tensor, ids_Nk: Tensor) -> None:
        """Counts the tokens since each latent fired."""
        self.tokens_since_fired += len(ids_Nk)
        self.tokens_since_fired[ids_Nk[values_Nk > 0]] = 0

    @torch.no_grad()
    def _average(self) -> None:
        """Takes in the weights that the last step left."""
        self.averaged_steps += 1
        for name in AVERAGED:
            getattr(self, f"average_{name}").lerp_(getattr(self, name), 1 - self.cfg.ema)

    def _averaged(self, name: str) -> Tensor:
        """The average of a weight, the last step's taken in, of total weight 1."""
        total = 1 - self.cfg.ema ** (int(self.averaged_steps) + 1)
        return getattr(self, f"average_{name}").lerp(getattr(self, name), 1 - self.cfg.ema) / total

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Latents are measured in the input's units afterwards, so that rows keep their norm."""
        scaled = ("b_enc", "b_dec", *(f"average_{name}" for name in ("b_enc", "b_dec") if self.cfg.ema))
        for name in scaled:
            getattr(self, name).data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    @torch.no_grad()
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict.update({name: values.contiguous() for name, values in state_dict.items()})

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        if self.cfg.ema:
            state_dict.update({name: self._averaged(name).contiguous() for name in AVERAGED})
        for name in set(state_dict) - set(AVERAGED):
            del state_dict[name]
        if self.cfg.unit_rows:
            state_dict["W_dec"] = F.normalize(state_dict["W_dec"], dim=1)


def strongest(pre_nd: Tensor, k: int) -> Tensor:
    """The k largest of every row, ReLU, 0 in place of the others [n, d]."""
    top = pre_nd.topk(min(k, pre_nd.shape[1]), dim=-1, sorted=False)
    return torch.zeros_like(pre_nd).scatter(-1, top.indices, top.values.relu())


@torch.no_grad()
def geometric_median(x_ND: Tensor) -> Tensor:
    """The point [D] with the least sum of distances, by Weiszfeld's iteration."""
    x_ND = x_ND.float()
    median_D = x_ND.mean(0)
    for _ in range(MEDIAN_STEPS):
        weights_N = 1 / (x_ND - median_D).norm(dim=1).clamp(min=1e-8)
        moved_D = weights_N @ x_ND / weights_N.sum()
        done = (moved_D - median_D).norm() <= 1e-6 * median_D.norm()
        median_D = moved_D
        if done:
            break
    return median_D
