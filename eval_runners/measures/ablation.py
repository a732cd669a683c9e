"""Changes of a language model's predictions when vectors are subtracted from its activations.

Shapes: C contexts, T tokens, P measured positions, D = d_in, V tokens of the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import replacing

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Effect:
    """Effect of one ablation on the next-token predictions, mean over positions."""

    kl: float
    """Kullback-Leibler divergence from the clean to the ablated predictions, nats."""
    top: float
    """Absolute change of the log-probability of the token that is most likely without the ablation, nats."""


class Ablation:
    """The clean logits of one model at some positions of a few contexts, and how ablations change them."""

    def __init__(self, model: HookedTransformer, hook_name: str, tokens_CT: Tensor, measured_CT: Tensor) -> None:
        """Run the model without an ablation.

        Args:
            model: the language model.
            hook_name: hook at whose activations vectors are subtracted.
            tokens_CT: token ids, BOS included.
            measured_CT: mask of the P positions whose predictions are measured.

        Raises:
            UsageError: the unembedding does not read the residual stream.
        """
        if model.W_U.shape[0] != model.cfg.d_model:
            raise UsageError(
                f"ablation needs a model whose unembedding reads the residual stream; this one's reads "
                f"{model.W_U.shape[0]} dimensions of a projection of it, not {model.cfg.d_model}"
            )
        self.model, self.hook_name = model, hook_name
        self.tokens_CT, self.measured_CT = tokens_CT.to(model.cfg.device), measured_CT.to(model.cfg.device)
        self.clean_PV = self._logits(lambda acts_CTD: acts_CTD)

    def _logits(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits [P, V] of a run whose activations [C, T, D] at the hook are changed.

        Only the measured positions are multiplied with the unembedding: logits of all positions would not fit.
        """
        model = self.model
        hooks: list[Any] = [replacing(self.hook_name, change)]
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            residual_CTD = model(self.tokens_CT, stop_at_layer=model.cfg.n_layers, prepend_bos=False)
            chosen_1PD = residual_CTD[self.measured_CT][None]
            normed_1PD = model.ln_final(chosen_1PD) if hasattr(model, "ln_final") else chosen_1PD
            logits_PV = model.unembed(normed_1PD)[0].float()
        cap = getattr(model.cfg, "output_logits_soft_cap", 0) or 0
        return cap * torch.tanh(logits_PV / cap) if cap > 0 else logits_PV

    def without(self, written_CTD: Tensor) -> Tensor:
        """Change of the logits when vectors are subtracted from the activations.

        Args:
            written_CTD: the vectors; zero where nothing is subtracted.

        Returns:
            Change [P, V] minus its mean over the vocabulary, which no probability depends on.
        """
        change_PV = self._logits(lambda acts_CTD: acts_CTD - written_CTD.to(acts_CTD)) - self.clean_PV
        return change_PV - change_PV.mean(-1, keepdim=True)

    def effect(self, change_PV: Tensor) -> Effect:
        """Effect of a change of the logits on the predictions."""
        clean_PV, ablated_PV = self.clean_PV.log_softmax(-1), (self.clean_PV + change_PV).log_softmax(-1)
        kl_P = (clean_PV.exp() * (clean_PV - ablated_PV)).sum(-1)
        top_P1 = clean_PV.argmax(-1, keepdim=True)
        return Effect(kl_P.mean().item(), (ablated_PV - clean_PV).gather(-1, top_P1).abs().mean().item())


@contextlib.contextmanager
def in_float32(model: HookedTransformer) -> Iterator[None]:
    """Let a model of lower precision compute in float32, which does not round small changes away.

    The weights keep the values that they have in the lower precision.
    """
    dtype = model.cfg.dtype
    if dtype == torch.float32:
        yield
        return
    model.to(torch.float32, print_details=False)
    try:
        yield
    finally:
        model.to(dtype, print_details=False)


def projection_share(part_PV: Tensor, whole_PV: Tensor) -> float:
    """Projection coefficient of one change of the logits on another, mean over positions.

    Args:
        part_PV: the change that is projected.
        whole_PV: the change on which it is projected; positions where it is zero do not count.

    Returns:
        1 for equal changes, 0 for orthogonal ones, NaN if `whole_PV` is zero everywhere.
    """
    size_P = whole_PV.pow(2).sum(-1)
    shares = (part_PV * whole_PV).sum(-1)[size_P > 0] / size_P[size_P > 0]
    return shares.mean().item() if len(shares) else float("nan")
