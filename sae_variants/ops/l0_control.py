"""Control of L0 by the weight λ of a penalty: log λ rises while more latents fire than shall, and falls otherwise.

    log λ += rate · e,      λ = exp(log λ + gain · e),      e = log(L0 / target), between -1 and 1

This is dual ascent in log λ with a term proportional to the present error, which damps oscillations (PID Lagrangian
methods, arXiv 2007.03964). Nothing leaves the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 0.5
"""L0 that counts where fewer latents fire, as the logarithm of 0 is not finite."""


@torch.no_grad()
def l0_error(l0: Tensor, k: float, first_l0: Tensor, ahead: float) -> Tensor:
    """Return log(L0 / target) []; the target falls geometrically from the first L0, where that is above k, to k.

    Args:
        l0: Latents that fire per token [].
        k: Final target.
        first_l0: L0 from which the target falls [].
        ahead: Share of the way from there that is still to go, between 0 and 1.
    """
    at_first = (first_l0.clamp(min=FEWEST) / k).log()
    return (l0.clamp(min=FEWEST) / k).log() - ahead * at_first.clamp(min=0)


@torch.no_grad()
def follow_l0(log_lambda: Tensor, error: Tensor, rate: float, gain: float) -> Tensor:
    """Move log λ, in place, by the error of L0, and return the λ [] of this step.

    Args:
        log_lambda: log λ, of any shape.
        error: `l0_error` of the step.
        rate: Rise of log λ for an error by a factor of e or more.
        gain: Term of the present log λ for such an error.
    """
    error = error.double().clamp(-1, 1)
    log_lambda += rate * error
    return (log_lambda + gain * error).exp().float()
