"""Two levels of latents, both of which decode to the input: the core that several variants share.

    f = act(W_enc_lower (x - b) + b_enc_lower)      lower level      x̂_lower = f · W_dec_lower + b
    g = act(W_enc_upper f + b_enc_upper)            upper level      x̂_upper = g · W_dec + b_dec

The upper level reads the lower one and writes through it: f̂ = g · W_links + b_links, so W_dec = W_links · W_dec_lower
and b_dec = b_links · W_dec_lower + b. Decoder rows of both levels count as if they were of unit norm, as in SAELens'
BatchTopK, so latents are in the units of what they write.

What is trained goes by shares of the steps: the lower level alone; the upper level, the lower frozen to the bit; then
both. The last two have factors of their own for the learning rate. Which upper latent is the parent of which lower one
is fixed when the third begins: the one that writes most to it, |W_links| times its mean activation.

    L = lower · |x - x̂_lower|² + upper · |x - x̂_upper|² + η · |sg(f) - f̂|² + sparsity of both + AuxK of both

Sparse by BatchTopK (arXiv 2412.06410), k per token, averaged over the batch, where a variant does not say otherwise. A
trained SAE is saved as its upper level, of the architecture `hierarchical`, with the lower one as a stock `jumprelu` in
the folder `lower`.

Shapes: N tokens, D = d_in, L lower latents, U = d_sae upper latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import calculate_topk_aux_acts
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.ops.sparse import decode_sparse, sparse_gradient_product
from sae_variants.registry.contract import TrainingHooks
from sae_variants.two_level.config import TwoLevelTrainingSAEConfig
from sae_variants.two_level.saved import DIGITS, LOWER, NO_PARENT

TINY = 1e-12


@dataclass
class Level:
    """One level's part of a step."""

    acts: Tensor
    """Latents [N, L] or [N, U], in the units of what they write."""
    pre: Tensor
    """The same before the activation function."""
    rows: Tensor
    """Decoder rows of unit norm [L, D] or [U, D]."""
    bias: Tensor
    """[D]"""

    @cached_property
    def out(self) -> Tensor:
        """Reconstruction [N, D]."""
        return decode_sparse(self.acts, self.rows) + self.bias

    def detached(self) -> Level:
        return Level(self.acts.detach(), self.pre.detach(), self.rows.detach(), self.bias.detach())


class TwoLevelTrainingSAE(TrainingHooks, TrainingSAE[Any]):
    cfg: Any
    W_enc_lower: nn.Parameter
    b_enc_lower: nn.Parameter
    W_dec_lower: nn.Parameter
    W_enc_upper: nn.Parameter
    b_enc_upper: nn.Parameter
    W_links: nn.Parameter
    b_links: nn.Parameter
    thresholds: Tensor
    parent_L: Tensor
    activity_L: Tensor
    activity_U: Tensor
    lower_silent_L: Tensor
    upper_silent_U: Tensor

    def __init__(self, cfg: TwoLevelTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        L, U, device = cfg.d_lower, cfg.d_sae, self.b_dec.device
        self.register_buffer("thresholds", torch.zeros(2, dtype=torch.float64, device=device))
        self.register_buffer("parent_L", torch.full((L,), NO_PARENT, device=device))
        self.register_buffer("activity_L", torch.zeros(L, device=device))
        self.register_buffer("activity_U", torch.zeros(U, device=device))
        self.register_buffer("lower_silent_L", torch.zeros(L, device=device))
        self.register_buffer("upper_silent_U", torch.zeros(U, device=device))
        self.lower_activation = self.activation(cfg.k_of_lower)
        self.upper_activation = self.activation(cfg.k)

    @override
    def initialize_weights(self) -> None:
        cfg, made = self.cfg, {"dtype": self.dtype, "device": self.device}
        norm = cfg.decoder_init_norm or 1.0
        W_dec_LD = norm * F.normalize(torch.randn(cfg.d_lower, cfg.d_in, **made), dim=-1)
        W_links_UL = norm * F.normalize(torch.randn(cfg.d_sae, cfg.d_lower, **made), dim=-1)
        self.W_dec_lower, self.W_links = nn.Parameter(W_dec_LD), nn.Parameter(W_links_UL)
        self.W_enc_lower = nn.Parameter(W_dec_LD.T.clone().contiguous())
        self.W_enc_upper = nn.Parameter(W_links_UL.T.clone().contiguous())
        for name, size in (
            ("b_enc_lower", cfg.d_lower), ("b_enc_upper", cfg.d_sae), ("b_links", cfg.d_lower), ("b_dec", cfg.d_in)
        ):  # fmt: skip
            setattr(self, name, nn.Parameter(torch.zeros(size, **made)))

    def activation(self, k: float) -> nn.Module:
        """The activation function of a level of which k latents shall fire per token: BatchTopK or ReLU."""
        return BatchTopK(k)

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]
        """Decoder rows [U, D] of the upper level, not of unit norm."""
        return self.W_links @ F.normalize(self.W_dec_lower, dim=-1)

    @override
    def learning_rate_scale(self, step: int) -> float:
        """What the coming step's learning rate is multiplied by; whoever trains asks before each step."""
        return self.cfg.learning_rate_scale(step)

    def lower(self, x: Tensor) -> Level:
        norm_L = self.W_dec_lower.norm(dim=-1)
        sae_in = self.run_time_activation_norm_fn_in(self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype))))
        # norms and the input bias go into the weights: a matrix of weights is far smaller than one of latents
        flat = sparse_gradient_product(sae_in.flatten(0, -2), self.W_enc_lower * norm_L, self._lower_bias_L() * norm_L)
        pre = flat.unflatten(0, sae_in.shape[:-1])
        return Level(self.lower_activation(pre), pre, self.W_dec_lower / norm_L[:, None], self.b_dec)

    def _lower_bias_L(self) -> Tensor:
        bias_L = self.b_enc_lower
        return bias_L - self.b_dec @ self.W_enc_lower if self.cfg.apply_b_dec_to_input else bias_L

    def upper(self, lower: Level) -> Level:
        W_dec_UD = self.W_links @ lower.rows
        norm_U = W_dec_UD.norm(dim=-1).clamp(min=TINY)  # a row may be all zero
        pre = self.hook_sae_acts_pre(lower.acts @ (self.W_enc_upper * norm_U) + self.b_enc_upper * norm_U)
        acts = self.hook_sae_acts_post(self.upper_activation(pre))
        return Level(acts, pre, W_dec_UD / norm_U[:, None], self.b_links @ lower.rows + lower.bias)

    @property
    def links_UL(self) -> Tensor:
        """What an upper latent, in the units of what it writes, adds to each lower one."""
        return self.W_links / self.W_dec.norm(dim=-1).clamp(min=TINY)[:, None]

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        upper = self.upper(self.lower(x))
        return upper.acts, upper.pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        b_dec = self.b_links @ F.normalize(self.W_dec_lower, dim=-1) + self.b_dec
        out = self.hook_sae_recons(feature_acts @ F.normalize(self.W_dec, dim=-1) + b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)

    @override
    def get_coefficients(self) -> dict[str, Any]:
        return {}

    @override
    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise NotImplementedError("a two-level SAE has its own training_forward_pass")

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        cfg, x_ND, step = self.cfg, step_input.sae_in, step_input.n_training_steps
        phase = cfg.phase(step)
        if (
            phase != 1
            and cfg.curriculum
            and cfg.start == "copies"
            and not self.activity_U.any()
            and self.activity_L.any()
        ):
            self._copy_up()
        if cfg.total_steps and step >= cfg.joint_from and (self.parent_L == NO_PARENT).all():
            self.parent_L = self.parents()
        losses: dict[str, Tensor] = {}
        with torch.set_grad_enabled(phase != 2 and torch.is_grad_enabled()):
            lower = self.lower(x_ND)
        if phase == 2:
            lower = lower.detached()  # its bias is the parameter itself
        if phase != 2:
            if cfg.lower_coefficient:
                losses["lower_mse_loss"] = cfg.lower_coefficient * squared_error(x_ND, lower.out)
            losses |= {f"lower_{name}": loss for name, loss in self.sparsity_losses(lower, LOWER, x_ND).items()}
            losses |= self._aux("lower", lower, x_ND, self.lower_silent_L)
            self._follow(0, lower, self.lower_silent_L, self.activity_L)
        upper = None
        if phase != 1:
            upper = self.upper(lower)
            if cfg.upper_coefficient:
                losses["mse_loss"] = cfg.upper_coefficient * squared_error(x_ND, upper.out)
            if cfg.latent_coefficient:
                wanted_NL, found_NL = lower.acts.detach(), upper.acts @ self.links_UL + self.b_links
                losses["latent_mse_loss"] = cfg.latent_coefficient * squared_error(wanted_NL, found_NL)
            losses |= self.sparsity_losses(upper, "upper", x_ND)
            losses |= self._aux("upper", upper, x_ND, self.upper_silent_U)
            self._follow(1, upper, self.upper_silent_U, self.activity_U)
            if phase == 3:
                losses |= self.joint_losses(lower, upper)
        # a phase may have no term that is left switched on: nothing is learned then
        loss = torch.stack(list(losses.values())).sum() if losses else self.W_links.sum() * 0.0
        shown, silent = (lower, self.lower_silent_L) if upper is None else (upper, self.upper_silent_U)
        metrics: dict[str, Any] = {
            "phase": phase,
            "l0": lambda: (shown.acts > 0).sum(-1).float().mean().item(),
            "dead": lambda: (silent > cfg.dead_after_steps).float().mean().item(),
        }
        none_NU = x_ND.new_zeros(len(x_ND), cfg.d_sae)  # SAELens counts what fires among the latents it will save
        acts_NU, pre_NU = (none_NU, none_NU) if upper is None else (upper.acts, upper.pre)
        return TrainStepOutput(x_ND, shown.out, acts_NU, pre_NU, loss, losses, metrics)

    def sparsity_losses(self, level: Level, name: str, x_ND: Tensor) -> dict[str, Tensor]:
        """What makes a level sparse beside its activation function; `name` is lower or upper."""
        return {}

    def joint_losses(self, lower: Level, upper: Level) -> dict[str, Tensor]:
        """What a variant adds once both levels train; parents are fixed by then, unless nobody knows the steps."""
        return {}

    def _aux(self, name: str, level: Level, x_ND: Tensor, silent: Tensor) -> dict[str, Tensor]:
        """AuxK (arXiv 2406.04093, A.2): the dead latents that come nearest to firing reconstruct what is left over."""
        dead = silent > self.cfg.dead_after_steps
        n_dead = int(dead.sum())
        if not self.cfg.aux_loss_coefficient or not n_dead:
            return {}
        k = self.cfg.d_in // 2
        acts = calculate_topk_aux_acts(min(k, n_dead), level.pre, dead)
        loss = squared_error((x_ND - level.out).detach(), acts @ level.rows)
        return {f"{name}_aux_loss": self.cfg.aux_loss_coefficient * min(n_dead / k, 1.0) * loss}

    @torch.no_grad()
    def _follow(self, index: int, level: Level, silent: Tensor, activity: Tensor) -> None:
        """Counts the steps since each latent fired; mean activations and the threshold follow what fires."""
        silent += 1
        silent[(level.acts > 0).any(0)] = 0
        activity += 0.05 * (level.acts.mean(0).float() - activity)
        positive = level.acts[level.acts > 0]
        if isinstance(self.lower_activation, BatchTopK) and len(positive):
            self.thresholds[index] += self.cfg.topk_threshold_lr * (positive.min().double() - self.thresholds[index])

    @torch.no_grad()
    def _copy_up(self) -> None:
        """Makes upper latents copies of the lower ones that write most."""
        chosen_U = self.activity_L.topk(self.cfg.d_sae).indices
        upper_U = torch.arange(self.cfg.d_sae, device=chosen_U.device)
        for weights in (self.W_links.data, self.W_enc_upper.data.T):
            weights.zero_()
            weights[upper_U, chosen_U] = 1.0

    @torch.no_grad()
    def parents(self) -> Tensor:
        """[L]: the upper latent that writes most to each lower one; before any has fired, by its weight alone."""
        weights_U = self.activity_U if self.activity_U.any() else torch.ones_like(self.activity_U)
        return (self.links_UL.abs() * weights_U[:, None].to(self.links_UL)).argmax(0)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self.W_enc_lower.data *= scaling_factor
        for written in (self.W_dec_lower, self.b_dec, self.b_enc_upper, self.b_links):
            written.data /= scaling_factor
        self.thresholds /= scaling_factor
        self.activity_L /= scaling_factor
        self.activity_U /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        state_dict.clear()
        state_dict.update({**self._lower_state(), **self._upper_state()})

    @torch.no_grad()
    def _lower_state(self) -> dict[str, Tensor]:
        norm_L = self.W_dec_lower.norm(dim=-1)
        return {
            "W_enc_lower": self.W_enc_lower * norm_L,
            "b_enc_lower": self._lower_bias_L() * norm_L,
            "threshold_lower": torch.full_like(norm_L, float(self.thresholds[0])),
            "W_dec_lower": self.W_dec_lower / norm_L[:, None],
            "b_dec_lower": self.b_dec.detach().clone(),
        }

    @torch.no_grad()
    def _upper_state(self) -> dict[str, Tensor]:
        rows_LD = F.normalize(self.W_dec_lower, dim=-1)
        W_dec_UD = self.W_links @ rows_LD
        norm_U = W_dec_UD.norm(dim=-1).clamp(min=TINY)  # a row may be all zero
        parent_L = self.parent_L if (self.parent_L != NO_PARENT).any() else self.parents()
        return {
            "W_enc_upper": self.W_enc_upper * norm_U,
            "b_enc": self.b_enc_upper * norm_U,
            "threshold": torch.full_like(norm_U, float(self.thresholds[1])),
            "W_links": self.W_links / norm_U[:, None],
            "W_dec": W_dec_UD / norm_U[:, None],
            "b_dec": self.b_links @ rows_LD + self.b_dec,
            "parent_digits_3L": (parent_L // DIGITS.to(parent_L.device)[:, None] % 256).to(norm_U),
        }

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        saved = super().save_inference_model(path)
        folder = Path(path) / LOWER
        folder.mkdir(exist_ok=True)
        state = {name.removesuffix("_lower"): tensor.contiguous() for name, tensor in self._lower_state().items()}
        save_file(state, folder / SAE_WEIGHTS_FILENAME)
        upper_config = self.cfg.get_inference_sae_cfg_dict()
        config = {name: value for name, value in upper_config.items() if name != "d_lower"}
        config |= {"architecture": JumpReLUSAEConfig.architecture(), "d_sae": self.cfg.d_lower}
        (folder / SAE_CFG_FILENAME).write_text(json.dumps(config))
        return saved


def squared_error(wanted: Tensor, found: Tensor) -> Tensor:
    """Sum over the last dimension, mean over tokens."""
    return (found - wanted).pow(2).sum(-1).mean()
