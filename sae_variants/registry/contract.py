"""Contract of a variant: what its config and its SAE may tell the trainer beyond SAELens' interface.

A config inherits `VariantConfig`, a training SAE `TrainingHooks`; each overrides only what it needs.
Classes that inherit neither, such as SAELens' own, get the defaults through `config_hooks` and `hooks_of`.
Neither class adds a dataclass field, because the hash of a trained SAE covers every field of its config.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAEConfig
    from torch import Tensor

FROM_SETTINGS = frozenset({"total_steps", "dead_after_steps", "dead_after_tokens"})
"""Config fields that the trainer fills in, where a config has them: the training steps, and after how many steps or
tokens without firing a latent is dead."""


class VariantConfig:
    """Mixin for training configs; it stands before the SAELens config class among the bases."""

    parts: ClassVar[tuple[str, ...]] = ()
    """Further SAEs of the same training, scored as `name:part` and saved in a folder named after the part."""
    learns: ClassVar[bool] = True
    """Whether training changes the weights; false for an untrained baseline."""
    learns_by_gradient: ClassVar[bool] = True
    """Whether the loss has a gradient."""

    added: ClassVar[Mapping[str, Any]] = {}
    """Fields that a variant got after SAEs had been trained, with the values that mean what it did before. The key of a
    trained SAE leaves them out at these values, so that older SAEs keep theirs."""

    d_in: int
    """Width of the activations."""
    d_sae: int
    """Number of latents."""
    window: int = 1
    """Consecutive tokens of one context that must stay together in the training stream."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

        def __init__(self, *, d_in: int, d_sae: int, **fields: Any) -> None: ...

    @classmethod
    def architecture(cls) -> str:
        """Return the architecture string in SAELens' registry and checkpoints, by default the name of the file."""
        return cls.__module__.rpartition(".")[2]

    def get_inference_config_class(self) -> type[SAEConfig]:
        """Return the config class of the saved SAE, by default that of the stock architecture it extends."""
        from sae_lens.registry import get_sae_class
        from sae_lens.saes.sae import TrainingSAEConfig

        bases = type(self).__mro__
        stock: Any = next(c for c in bases if issubclass(c, TrainingSAEConfig) and not issubclass(c, VariantConfig))
        if stock.get_inference_config_class is TrainingSAEConfig.get_inference_config_class:
            return get_sae_class(stock.architecture())[1]
        return stock.get_inference_config_class(self)

    @property
    def n_weights(self) -> int:
        """Number of weights, from which the memory of a training is estimated."""
        return 2 * self.d_in * self.d_sae

    def step_bytes(self, n_tokens: int, device: str) -> int:
        """Return the memory of a training step beside weights, gradients and Adam's moments, at least.

        By default it holds two numbers for every token and latent.
        """
        return 2 * n_tokens * self.d_sae * 4

    @classmethod
    def recipe(cls, train: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings and fields that replace those of a target's recipe `train`."""
        return {}

    @classmethod
    def l0_fields(cls, part: str, l0: float) -> dict[str, float]:
        """Return the fields with which `l0` latents of the SAE, or of a part of it, fire per token."""
        return {"k": l0}

    @classmethod
    def latent_groups(cls, d_sae: int, fields: Mapping[str, Any]) -> dict[str, slice]:
        """Return the groups of latents that evaluators report separately.

        Args:
            d_sae: Number of latents.
            fields: Config fields of the trained SAE, as its metadata records them.

        Returns:
            Slices of the d_sae latents by the name of the group; empty for SAEs without groups.
        """
        return {}


class TrainingHooks:
    """Mixin for training SAEs; it stands before the SAELens class among the bases."""

    special_N: Tensor | None = None
    """Mask [N] of the rows of the coming batch that stand for special tokens; the trainer sets it, on the host."""

    context_N: Tensor | None = None
    """Number [N] of the context of each row of the coming batch; the trainer sets it, on the host."""

    is_ours: bool = False
    """Whether the trainer of this package trains the SAE; it sets this."""

    in_step: bool = False
    """Whether a training step is under way: running thresholds follow only what it encodes, not a look at the SAE."""

    @contextmanager
    def step_under_way(self) -> Iterator[None]:
        """Have running thresholds follow what is encoded inside."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def warn_of_other_trainer(self, what: str) -> None:
        """Warn once if another trainer than that of this package asks for the coefficients of the losses.

        Args:
            what: What differs there.
        """
        if not self.is_ours and not getattr(self, "has_warned", False):
            self.has_warned = True
            warnings.warn(
                f"{type(self).__name__} is trained by another trainer than `python -m sae_variants train`: {what}.",
                stacklevel=3,
            )

    @property
    def adam_options(self) -> dict[str, Any]:
        """Options of Adam that differ from those of SAELens' trainer."""
        return {}

    def learning_rate_scale(self, step: int) -> float:
        """Return the factor of the scheduled learning rate at a training step."""
        return 1.0

    in_shards: ClassVar[dict[str, Any] | None] = None
    """Fields that need all latents in one process, with the values at which they do not; None if the variant does. A
    variant that does not has an attribute `shards` and asks it for what depends on other latents or tokens."""

    def in_saved_order(self, values: Tensor, axis: int = 0) -> Tensor:
        """Return values of the latents, along an axis, in the order in which the latents are saved."""
        return values

    @property
    def calibrates(self) -> bool:
        """Whether the saved SAE has a threshold that `calibrate` sets."""
        return False

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Set the thresholds so that k latents fire per token, before the SAE is saved.

        Args:
            batches: The last inputs [N, D] of the training, scaled as the SAE was trained on them.
        """

    @property
    def trace(self) -> dict[str, Tensor]:
        """Columns over the training steps that are saved beside the weights; empty if the SAE keeps none."""
        return {}


@cache
def config_hooks(config_class: type) -> type[VariantConfig]:
    """Return the config class, with the defaults of `VariantConfig` behind it if it does not inherit them."""
    if issubclass(config_class, VariantConfig):
        return config_class
    return type(config_class.__name__, (config_class, VariantConfig), {"__module__": config_class.__module__})


def hooks_of(sae: Any) -> TrainingHooks:
    """Return the SAE itself if it inherits `TrainingHooks`, else an object with the defaults."""
    return sae if isinstance(sae, TrainingHooks) else TrainingHooks()
