"""TopK by the published recipe of large k-sparse autoencoders, with sparse gradients.

    f = ReLU(TopK_k((x - b) W_enc + b_enc)),      x̂ = f W_dec + b
    L = |x - x̂|² / var(x) + aux_loss_coefficient · |e - ê|² / var(e),      e = x - x̂ without gradient

AuxK: ê reconstructs e from the k_aux largest dead latents, without b. The recipe of Gao et al. (arXiv 2406.04093):

- W_enc starts as the transpose of W_dec, and b as the geometric median of the first batch;
- rows of W_dec have unit norm, and the component of their gradient along them is removed;
- a latent is dead once it has not fired for `dead_after_tokens`, and k_aux is a power of two near D / 2;
- the learning rate is proportional to 1 / √S, and Adam's ε is 6.25e-10;
- optionally, a moving average of the weights is saved;
- optionally, Multi-TopK adds L(multi_k) / 8, after which other numbers of latents can be used.

`k` is per token. Only the encoder's product is dense (`ops.sparse`). If many latents are dead, AuxK on all tokens costs
as much as the rest of a step; `aux_every` restricts it to some tokens. The SAE is saved as a stock SAELens `topk`.

Shapes: N tokens, n of them, D = d_in, S = d_sae, d dead latents, k latents of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.errors import relative_squared_error
from sae_variants.ops.host import Counted
from sae_variants.ops.moving_average import add_averages
from sae_variants.ops.shards import HERE, Shards
from sae_variants.ops.sparse import MANY, decode, keep_largest, reconstruct_from, sparse_codes, step_bytes
from sae_variants.refinement.config import RefinementConfig
from sae_variants.refinement.topk_saving import AVERAGED, SavedTopK
from sae_variants.registry.variants import register

MULTI_SHARE = 1 / 8
"""Weight of the reconstruction from multi_k latents."""


@dataclass
class SparseTopKTrainingSAEConfig(RefinementConfig, TopKTrainingSAEConfig):
    """Config of `topk`."""

    k: int = 32
    """Latents that fire per token."""
    rescale_acts_by_decoder_norm: bool = False
    """Must be false, because rows have unit norm."""
    decoder_init_norm: float | None = 1.0
    """Initial norm of decoder rows."""
    aux_loss_coefficient: float = 1 / 32
    """Weight of AuxK; 0 disables it."""
    k_aux: int = 0
    """Dead latents that AuxK uses per token; 0 is the power of two nearest to d_in / 2."""
    aux_every: int = 1
    """Apply AuxK to one token in N, a different subset each step; values above 1 save time."""
    multi_k: int = 0
    """A larger k whose reconstruction is added with weight 1/8; 0 disables it, the published value is 4 k."""
    median_start: bool = True
    """Whether b starts as the geometric median of the first batch; otherwise it starts at 0."""
    unit_rows: bool = True
    """Whether decoder rows keep unit norm and their gradient loses its component along them."""
    normalized_losses: bool = True
    """Whether squared errors are divided by the variance of their target."""
    ema: float = 0.0
    """Weight of the past in a moving average of the weights, which is then saved; 0 disables it."""
    learning_rate_width: int = 16384
    """Width at which the learning rate is used as given: learning rate x (learning_rate_width / d_sae)^p."""
    learning_rate_power: float = 0.5
    """Exponent p of the width scaling: learning rate x (learning_rate_width / d_sae)^p."""
    adam_epsilon: float = 6.25e-10
    """Adam's ε."""
    dead_after_tokens: int = 10_000_000
    """Tokens without firing after which a latent is dead."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_topk"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        at_most, scaling = f"at most d_sae = {self.d_sae}", ("none", "expected_average_only_in")
        k, many, few, unit = self.k, self.multi_k, self.k_aux, self.unit_rows
        for field, holds, rule in (
            ("rescale_acts_by_decoder_norm", not self.rescale_acts_by_decoder_norm, "be false, as rows have unit norm"),
            ("use_sparse_activations", not self.use_sparse_activations, "be false, as activations are sparse already"),
            ("normalize_activations", self.normalize_activations in scaling, f"be {' or '.join(scaling)}"),
            ("multi_k", many == 0 or k < many <= self.d_sae, f"be 0, or above k = {k} and {at_most}"),
            ("k_aux", 0 <= few <= self.d_sae, f"be at least 0 and {at_most}"),
            ("aux_loss_coefficient", self.aux_loss_coefficient >= 0, "not be negative"),
            ("aux_every", self.aux_every >= 1, "be at least 1"),
            ("ema", 0 <= self.ema < 1, "be at least 0 and below 1"),
            ("learning_rate_power", self.learning_rate_power >= 0, "not be negative"),
            ("learning_rate_width", self.learning_rate_width > 0, "be positive"),
            ("adam_epsilon", self.adam_epsilon > 0, "be positive"),
            ("dead_after_tokens", self.dead_after_tokens > 0, "be positive"),
            ("unit_rows", unit or not self.refine, "be true with refine, as norms change the largest latents"),
            ("decoder_init_norm", self.decoder_init_norm == 1 or not unit, "be 1, unless unit_rows is false"),
        ):
            if not holds:
                raise ValueError(f"{field} must {rule}; it is {getattr(self, field)}")

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        saved = super().get_inference_sae_cfg_dict()
        # With rows of unit norm both settings give the same latents, and SAELens folds norms with this one only.
        return saved if self.refine else {**saved, "rescale_acts_by_decoder_norm": self.unit_rows}

    @property
    def k_per_token(self) -> int:  # type: ignore[override]
        """Latents that fire per token in the saved SAE."""
        return self.k

    @override
    def step_bytes(self, n_tokens: int, device: str) -> int:
        return step_bytes(n_tokens, self.d_in, self.d_sae, device)

    @property
    def dead_latents_used(self) -> int:
        """Dead latents that AuxK uses per token."""
        return self.k_aux or 2 ** round(math.log2(max(1, self.d_in / 2)))


@register(SparseTopKTrainingSAEConfig)
class SparseTopKTrainingSAE(SavedTopK):
    """TopK in training."""

    in_shards: ClassVar[dict[str, Any] | None] = {"refine": 0, "multi_k": 0, "ema": 0.0}
    cfg: Any
    tokens_since_fired: Tensor
    shards: Shards = HERE
    """Where its latents and the tokens of a batch lie."""

    def __init__(self, cfg: SparseTopKTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._n_dead = Counted()
        self.register_buffer("tokens_since_fired", torch.zeros(cfg.d_sae, dtype=torch.long, device=self.device))
        if cfg.ema:
            add_averages(self, AVERAGED)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # The gradient is computed latent by latent; in this layout neither a product nor the optimiser transposes it.
        self.W_enc = nn.Parameter(self.W_enc.data.T.contiguous().T)

    @override
    def get_coefficients(self) -> dict[str, Any]:
        self.warn_of_other_trainer(
            "the learning rate is not scaled by the width, Adam's ε is that trainer's, and its dead_feature_window "
            "decides which latents are dead"
        )
        return super().get_coefficients()

    @property
    @override
    def adam_options(self) -> dict[str, Any]:
        return {"eps": self.cfg.adam_epsilon, "fused": True, "foreach": False}

    @override
    def learning_rate_scale(self, step: int) -> float:
        return (self.cfg.learning_rate_width / (self.cfg.d_sae * self.shards.count)) ** self.cfg.learning_rate_power

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Compute the loss; `feature_acts` is a sparse tensor, `hidden_pre` the activations [N, k] that fire."""
        cfg, shards, step = self.cfg, self.shards, step_input.n_training_steps
        x = self.hook_sae_input(self.reshape_fn_in(step_input.sae_in.to(self.dtype)))
        self.prepare_weights(x.flatten(0, -2), step)
        n_tokens, x = x[..., 0].numel(), shards.rows(x)
        x_ND = x.flatten(0, -2)
        tokens = shards.one_row_in(cfg.aux_every, step, len(x_ND))  # on which AuxK is applied
        counts_S, dead_S, mask_S = self.tokens_since_fired, self.dead_S, step_input.dead_neuron_mask
        if mask_S is not None and not self.is_ours:  # another trainer decides
            counts_S, dead_S = mask_S, mask_S.bool()
        dead_d = self._n_dead.indices(dead_S, counts_S) if cfg.aux_loss_coefficient else x_ND.new_empty(0).long()
        k = max(cfg.k, cfg.multi_k)
        is_many, encoded_ND = len(dead_d) > MANY * cfg.dead_latents_used, self.refined(x_ND)
        kept_d = dead_d[:0] if is_many else dead_d  # whose pre-activations are kept
        values_Nk, ids_Nk, pre_nd = self.encode_sparse(encoded_ND, k, tokens, kept_d)
        losses: dict[str, Tensor] = {}
        if cfg.multi_k:
            values_Nk, order = values_Nk.sort(dim=-1, descending=True)
            ids_Nk = ids_Nk.gather(-1, order)
            multi_ND, _ = decode(values_Nk, ids_Nk, self.W_dec, self.b_dec, unit_rows=cfg.unit_rows)
            losses["multi_topk_loss"] = MULTI_SHARE * self.error(x_ND, multi_ND)
            values_Nk, ids_Nk = values_Nk[:, : cfg.k], ids_Nk[:, : cfg.k]
        values_Nk = shards.keep_largest(values_Nk, cfg.k)
        self._count(values_Nk, ids_Nk, n_tokens)
        any_dead, b_dec = shards.anywhere(len(dead_d) > 0), shards.once(self.b_dec)
        pre_nd = pre_nd.masked_fill(self.tokens_since_fired[kept_d] == 0, -math.inf)  # they fire in this step
        aux_nd = keep_largest(pre_nd, cfg.dead_latents_used, shards if any_dead and not is_many else None)
        out_ND, aux_nD = decode(values_Nk, ids_Nk, self.W_dec, b_dec, aux_nd, kept_d, cfg.unit_rows)
        if is_many:
            b_enc = self.b_enc.masked_fill(self.tokens_since_fired == 0, -math.inf)
            weights, k_aux = (self.W_enc, b_enc, self.b_in, self.W_dec), cfg.dead_latents_used
            aux_nD = reconstruct_from(encoded_ND[tokens], dead_d, k_aux, *weights, shards, cfg.unit_rows)
        out_ND = self.hook_sae_recons(shards.join(out_ND))
        losses = {"mse_loss": self.error(x_ND, out_ND), **losses}
        if cfg.aux_loss_coefficient:
            e_nD = (x_ND - out_ND)[tokens].detach()
            aux = self.aux_loss(e_nD, shards.join(aux_nD)) if any_dead else out_ND.new_zeros(())
            losses["auxiliary_reconstruction_loss"] = cfg.aux_loss_coefficient * aux
        losses = {name: shards.shown(loss) for name, loss in losses.items()}
        shape = x.shape[:-1]
        codes: Any = sparse_codes  # the decorator of `torch.compiler` hides its signature
        return TrainStepOutput(
            sae_in=x,
            sae_out=self.reshape_fn_out(out_ND.view(x.shape), self.d_head),
            feature_acts=codes(values_Nk.view(*shape, -1), ids_Nk.view(*shape, -1), cfg.d_sae),
            hidden_pre=values_Nk.view(*shape, -1),
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={
                "l0": lambda: shards.average(shards.over_latents((values_Nk > 0).sum(-1).float().mean())).item(),
                "dead": lambda: (shards.over_latents(self.dead_S.float().mean()) / shards.count).item(),
            },
        )

    def error(self, target_ND: Tensor, output_ND: Tensor) -> Tensor:
        """Return the squared error: relative to predicting the mean or, not normalised, as a mean over tokens."""
        if self.cfg.normalized_losses:
            return relative_squared_error(target_ND, output_ND, self.shards)
        n_tokens = self.shards.over_tokens(target_ND.new_tensor(len(target_ND), dtype=torch.float32))
        return (target_ND - output_ND).float().pow(2).sum() / n_tokens

    def aux_loss(self, e_nD: Tensor, output_nD: Tensor) -> Tensor:
        """Return the error of the dead latents' reconstruction of the residual e_nD; 0 if that is not finite."""
        broken = self.shards.over_tokens((~e_nD.isfinite()).sum())
        return self.error(e_nD.masked_fill(broken > 0, 0.0), output_nD.masked_fill(broken > 0, 0.0))

    @property
    def dead_S(self) -> Tensor:
        """Mask [S] of the dead latents."""
        return self.tokens_since_fired > self.cfg.dead_after_tokens

    @torch.no_grad()
    def _count(self, values_Nk: Tensor, ids_Nk: Tensor, n_tokens: int) -> None:
        fires_Nk, none_S = (values_Nk > 0).long(), torch.zeros_like(self.tokens_since_fired)
        fires_S = none_S.index_add(0, ids_Nk.flatten(), fires_Nk.flatten())
        self.tokens_since_fired = self.shards.least((self.tokens_since_fired + n_tokens).masked_fill(fires_S > 0, 0))
        self._n_dead.count(self.dead_S, self.tokens_since_fired)
