"""Saved form of two levels of latents: the architecture `hierarchical`, and its lower level as an SAE of its own.

    f = jump(x · W_enc_lower + b_enc_lower)      lower latents; with refinement steps x is that of `refinement.steps`
    g = jump(f · W_enc_upper + b_enc)            upper latents, which encode returns
    x̂ = g · W_dec + b_dec

`W_links`, the contribution of an upper latent to each lower one, and the parents describe the hierarchy.
Shapes: D = d_in, L lower latents, U = d_sae upper latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.registry import register_sae_class
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, SAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.refinement.saved import RefinedSAE, RefinedSAEConfig
from sae_variants.refinement.steps import refined_input

ARCHITECTURE = "hierarchical"
LOWER = "lower"
"""Name of the part, and of its folder, that holds the lower level."""
NO_PARENT = -1
DIGITS = torch.tensor([1, 256, 65536])
"""Place values of a parent's index in base 256: SAELens loads every tensor as floats, and bfloat16 counts to 256."""


@dataclass
class TwoLevelSAEConfig(SAEConfig):
    """Config of the saved form."""

    d_lower: int = 0
    """Number of lower latents."""
    refine: int = 0
    """Refinement steps of the lower level's encoder."""
    step_size: float = 0.3
    """η, weight of what the code before left, in a refinement step."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE


class TwoLevelSAE(SAE[TwoLevelSAEConfig]):
    """Upper level of a trained SAE, with the lower level that it reads."""

    W_enc_lower: nn.Parameter
    b_enc_lower: nn.Parameter
    threshold_lower: nn.Parameter
    W_enc_upper: nn.Parameter
    b_enc: nn.Parameter
    threshold: nn.Parameter
    W_links: nn.Parameter
    W_dec_lower: nn.Parameter
    b_dec_lower: nn.Parameter
    parent_digits_3L: nn.Parameter
    inner_thresholds_lower: nn.Parameter
    _selected: list[int] | None = None

    @override
    def initialize_weights(self) -> None:
        D, L, U = self.cfg.d_in, self.cfg.d_lower, self.cfg.d_sae
        shapes = {
            "W_enc_lower": (D, L),
            "b_enc_lower": (L,),
            "threshold_lower": (L,),
            "W_dec_lower": (L, D),
            "b_dec_lower": (D,),
            "W_enc_upper": (L, U),
            "b_enc": (U,),
            "threshold": (U,),
            "W_links": (U, L),
            "W_dec": (U, D),
            "b_dec": (D,),
            "parent_digits_3L": (3, L),
        }
        if self.cfg.refine:
            shapes["inner_thresholds_lower"] = (self.cfg.refine, L)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device)))

    @property
    def parent_L(self) -> Tensor:
        """Parent [L] of each lower latent, an index of an upper one; `NO_PARENT` for none."""
        parent_L = (self.parent_digits_3L.long() * DIGITS.to(self.device)[:, None]).sum(0)
        return torch.where(parent_L < self.cfg.d_sae, parent_L, NO_PARENT)

    @property
    def W_enc(self) -> Tensor:  # type: ignore[override]
        """Encoder [D, U] if every lower latent fired, for measures of encoder directions.

        Clients such as SAEDashboard set some of its columns in its stead; `encode` then returns these latents alone.
        """
        W_enc_DU = self.W_enc_lower @ self.W_enc_upper
        return W_enc_DU if self._selected is None else W_enc_DU[:, self._selected]

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_enc":
            self._select_latents(value)
        else:
            super().__setattr__(name, value)

    @torch.no_grad()
    def _select_latents(self, W_enc_Dm: Tensor) -> None:
        """Restrict `encode` to the latents whose columns these are; all columns lift the restriction."""
        self._selected = None
        W_enc_DU, selected = self.W_enc, []
        is_free_U = torch.ones(self.cfg.d_sae, dtype=torch.bool, device=W_enc_DU.device)
        for column_D in W_enc_Dm.T:
            matches = ((W_enc_DU == column_D[:, None]).all(0) & is_free_U).nonzero()
            if not len(matches):
                raise ValueError(
                    "W_enc of two levels is the product W_enc_lower @ W_enc_upper, so no other values can replace it;"
                    " it can be set to some of its own columns, which selects these latents"
                )
            selected.append(int(matches[0]))
            is_free_U[matches[0]] = False
        self._selected = selected if len(selected) < self.cfg.d_sae else None

    def encode_lower(self, x: Tensor) -> Tensor:
        """Return lower latents [..., L] of inputs [..., D]."""
        shifted = refined_input(
            self.process_sae_in(x),
            [self.cfg.step_size] * self.cfg.refine,
            lambda shifted, step: self._jump_lower(shifted, self.inner_thresholds_lower[step]),
            lambda acts: acts @ self.W_dec_lower + self.b_dec_lower,
        )
        return self._jump_lower(shifted, self.threshold_lower)

    def _jump_lower(self, x: Tensor, threshold_L: Tensor) -> Tensor:
        return _jump(x @ self.W_enc_lower + self.b_enc_lower, threshold_L)

    @override
    def encode(self, x: Tensor) -> Tensor:
        W_enc_Lm, b_enc_m, threshold_m = self.W_enc_upper, self.b_enc, self.threshold
        if self._selected is not None:
            W_enc_Lm = W_enc_Lm[:, self._selected]
            # A client may have restricted these too.
            b_enc_m, threshold_m = (
                values if len(values) == len(self._selected) else values[self._selected]
                for values in (b_enc_m, threshold_m)
            )
        pre = self.hook_sae_acts_pre(self.encode_lower(x) @ W_enc_Lm + b_enc_m)
        return self.hook_sae_acts_post(_jump(pre, threshold_m))

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        norm_U = self.get_W_dec_norm()
        for rows in (self.W_dec, self.W_links):
            rows.data /= norm_U[:, None]
        for columns in (self.W_enc_upper, self.b_enc, self.threshold):
            columns.data *= norm_U

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self.W_enc_lower.data *= scaling_factor
        for weights in (self.W_dec_lower, self.b_dec_lower, self.W_dec, self.b_dec):
            weights.data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    def fold_activation_whitening(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a two-level SAE does not fold whitening: train it without")


register_sae_class(ARCHITECTURE, TwoLevelSAE, TwoLevelSAEConfig)


def _jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return pre.relu() * (pre > threshold).to(pre.dtype)


def lower_level_of(sae: TwoLevelSAE) -> JumpReLUSAE:
    """Return the lower level of a trained two-level SAE: a stock one, or `refined`."""
    common: dict[str, Any] = {
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_lower,
        "dtype": sae.cfg.dtype,
        "device": sae.cfg.device,
        "apply_b_dec_to_input": False,
        "metadata": sae.cfg.metadata,
    }
    names = ["W_enc", "b_enc", "threshold", "W_dec", "b_dec"]
    if sae.cfg.refine:
        lower: JumpReLUSAE = RefinedSAE(RefinedSAEConfig(**common, refine=sae.cfg.refine, step_size=sae.cfg.step_size))
        names.append("inner_thresholds")
    else:
        lower = JumpReLUSAE(JumpReLUSAEConfig(**common))
    lower.load_state_dict({name: getattr(sae, f"{name}_lower").detach() for name in names})
    return lower
