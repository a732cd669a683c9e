"""How two levels are trained: their sizes, what makes them sparse, the weights of the losses, and the three phases.

The equations are in `_two_level_training`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from typing_extensions import override

from sae_variants.registry.contract import VariantConfig
from sae_variants.two_level.saved import LOWER, TwoLevelSAEConfig


@dataclass
class TwoLevelTrainingSAEConfig(VariantConfig, TrainingSAEConfig, ABC):
    parts: ClassVar[tuple[str, ...]] = (LOWER,)
    """Other SAEs of the same training, scored as NAME:PART and saved in a folder of that name."""

    expansion: int = 4
    """Lower latents for each upper one. The recipe of a target gives the lower level its width."""
    k: float = 32
    """Upper latents that fire, per token, averaged over the batch."""
    lower_k: float = 0
    """The same of lower latents, which must be more; 0 takes 2 k."""
    progressive: bool = True
    """Whether a lower level as sparse as the upper one is refused; the ablation sets it to false."""
    lower_coefficient: float = 1.0
    """Weight of the lower level's reconstruction; 0 switches it off."""
    upper_coefficient: float = 1.0
    """γ, weight of the upper level's reconstruction of the input."""
    latent_coefficient: float = 0.0
    """η, weight of the upper level's reconstruction of lower latents."""
    aux_loss_coefficient: float = 1.0
    """Weight of AuxK in both levels, by which dead latents learn what the others leave."""
    curriculum: bool = True
    """Whether levels train one after the other at first; without, both train together throughout."""
    lower_share: float = 0.3
    """Share of the steps in which the lower level trains alone."""
    upper_share: float = 0.2
    """Share of the steps after those in which the upper level trains alone."""
    start: Literal["copies", "random"] = "copies"
    """How the upper level begins after a curriculum's first phase: as copies of the lower latents that write most."""
    upper_learning_rate: float = 0.3
    """What the learning rate is multiplied by while the upper level trains alone."""
    joint_learning_rate: float = 1.0
    """What the learning rate is multiplied by once both train together after a curriculum."""
    topk_threshold_lr: float = 0.01
    """Rate at which the thresholds of the trained SAE follow the smallest latents that fire."""
    total_steps: int = 0
    """Steps of the whole training; 0 if nobody knows, then no curriculum and no parents before it ends."""
    dead_after_steps: int = 1000
    """A latent that has not fired for so many steps of its level's training counts as dead."""

    @property
    def d_lower(self) -> int:
        return self.expansion * self.d_sae

    @property
    @override
    def n_weights(self) -> int:
        return 2 * self.d_lower * (self.d_in + self.d_sae)

    @property
    def k_of_lower(self) -> float:
        return self.lower_k or min(2 * self.k, self.d_lower)

    @classmethod
    @override
    def recipe(cls, train: Mapping[str, Any]) -> dict[str, Any]:
        """What becomes of a target's recipe: the lower level has the width of the other SAEs."""
        return {"d_sae": max(1, train["d_sae"] // cls.expansion)} if "d_sae" in train else {}

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TwoLevelSAEConfig

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        # what is saved has its input bias folded into the encoder's
        return {**super().get_inference_sae_cfg_dict(), "d_lower": self.d_lower, "apply_b_dec_to_input": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion < 1:
            raise ValueError(f"expansion must be at least 1, not {self.expansion}")
        if not 0 < self.k_of_lower <= self.d_lower:
            raise ValueError(
                f"lower_k must be above 0 and at most the {self.d_lower} lower latents, not {self.lower_k}"
            )
        if min(self.lower_share, self.upper_share) < 0 or self.lower_share + self.upper_share > 1:
            raise ValueError("lower_share and upper_share must not be negative, nor more than 1 together")
        if self.joint_learning_rate <= 0:
            raise ValueError(f"joint_learning_rate must be positive, not {self.joint_learning_rate}")
        for field in self.__dataclass_fields__:
            if field.endswith("_coefficient") and getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, it is {getattr(self, field)}")
        if self.upper_learning_rate <= 0:
            raise ValueError(f"upper_learning_rate must be positive, not {self.upper_learning_rate}")
        if not 0 < self.topk_threshold_lr <= 1:
            raise ValueError(f"topk_threshold_lr must be above 0 and at most 1, not {self.topk_threshold_lr}")
        if self.normalize_activations not in ("none", "expected_average_only_in"):
            raise ValueError(
                "two levels train with normalize_activations none or expected_average_only_in, "
                f"not {self.normalize_activations!r}"
            )
        if self.progressive and (wrong := self.not_progressive()):
            raise ValueError(f"{wrong}: the upper level is the sparser one (progressive=false allows it)")

    def not_progressive(self) -> str:
        """What makes the lower level as sparse as the upper one, or "" if nothing does."""
        return f"lower_k = {self.k_of_lower:g} must be above k = {self.k:g}" if self.k_of_lower <= self.k else ""

    def phase(self, step: int) -> int:
        """1: the lower level trains; 2: the upper; 3: both."""
        if not self.curriculum or not self.total_steps or step >= self.joint_from:
            return 3
        return 1 if step < round(self.lower_share * self.total_steps) else 2

    def steps_of(self, name: str) -> int:
        """Steps in which a level trains."""
        rests = 2 if name == LOWER else 1
        return sum(self.phase(step) != rests for step in range(self.total_steps))

    @property
    def joint_from(self) -> int:
        """The step at which parents are fixed and, with a curriculum, the third phase begins."""
        return round((self.lower_share + self.upper_share) * self.total_steps)

    def learning_rate_scale(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        if not self.curriculum or not self.total_steps:
            return 1.0
        return (1.0, self.upper_learning_rate, self.joint_learning_rate)[self.phase(step) - 1]
