"""Signs that an SAE is not trained: weights that are not finite, probes that only guess."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eval_runners.contract.contract import Untrained

AT_CHANCE = 0.02


def require_finite_weights(sae: Any) -> None:
    """Untrained if a weight is not a number: no probe can be fitted on its latents."""
    for name, weight in sae.state_dict().items():
        if not weight.isfinite().all():
            raise Untrained(f"{name} holds what is not a number")


def why_at_chance(accuracies: Iterable[float | None]) -> list[str]:
    """The reason not to call an SAE trained whose every single probe, on balanced documents, only guesses."""
    found = [accuracy for accuracy in accuracies if accuracy is not None]
    if any(abs(accuracy - 0.5) > AT_CHANCE for accuracy in found):
        return []
    return [f"at chance: every SAE probe is within {AT_CHANCE} of 0.5"]
