"""Fields that the configs of all variants with a refined encoder share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sae_lens.saes.sae import SAEConfig
from typing_extensions import override

from sae_variants.refinement.saved import RefinedSAEConfig
from sae_variants.registry.contract import VariantConfig

MOST_STEPS = 100
"""Largest number of refinement steps; each costs another encoding, and more than three were never better."""


@dataclass
class RefinementConfig(VariantConfig):
    """Config of the variants whose encoder can be refined; it stands before SAELens' config class among the bases."""

    added: ClassVar[Mapping[str, Any]] = {"refine": 0, "step_size": 0.3}
    k_per_token: ClassVar[int] = 0
    """Latents that fire per token in the saved SAE; 0 where thresholds decide."""

    refine: int = 0
    """Refinement steps of the encoder: each encodes what the code before left, at the cost of another encoding."""
    step_size: float = 0.3
    """η, weight of what the code before left, in the input of a refinement step."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        if not 0 <= self.refine <= MOST_STEPS:
            raise ValueError(f"refine must be at least 0 and at most {MOST_STEPS}, not {self.refine}")
        if not 0 < self.step_size <= 2:
            raise ValueError(f"step_size must be above 0 and at most 2, not {self.step_size:g}")

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return RefinedSAEConfig if self.refine else super().get_inference_config_class()
