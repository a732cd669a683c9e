"""Signs that an SAE is not trained: weights that are not finite, probes at chance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Untrained

if TYPE_CHECKING:
    from sae_lens import SAE

AT_CHANCE = 0.02
"""Largest distance of a balanced task's accuracy from 0.5 at which a probe is at chance."""


def require_finite_weights(sae: SAE[Any]) -> None:
    """Refuse an SAE on whose latents no probe can be fitted.

    Raises:
        Untrained: a weight is NaN or infinite.
    """
    for name, weights in sae.state_dict().items():
        if not weights.isfinite().all():
            raise Untrained(f"{name} has values that are not finite")


def why_at_chance(accuracies: Iterable[float | None]) -> list[str]:
    """Reason to treat an SAE as untrained if every one of its probes is at chance.

    Args:
        accuracies: accuracies of probes on balanced documents; None where there is none.

    Returns:
        One reason, or none.
    """
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if any(abs(accuracy - 0.5) > AT_CHANCE for accuracy in known):
        return []
    return [f"at chance: every SAE probe is within {AT_CHANCE} of 0.5"]
