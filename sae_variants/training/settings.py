"""Settings that every training has, whatever the variant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from sae_variants.common.errors import UsageError
from sae_variants.common.values import check_type

DTYPES = ("float32", "bfloat16", "float64")
MOST_SEED = 10**13
"""Largest seed: torch takes seeds of 64 bits, and that of a buffer is a million times larger."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How an SAE is trained; every field is part of the hash of the result."""

    d_sae: int = 16384
    """Number of latents."""
    training_tokens: int = 500_000_000
    """Tokens to train on, without special tokens."""
    batch_tokens: int = 4096
    """Tokens in a training step."""
    context_size: int = 128
    """Tokens in a context of the language model, BOS included."""
    stream_window: int = 8
    """Consecutive tokens that stay together when activations are shuffled; adapted to a variant's window."""
    buffer_contexts: int = 4096
    """Contexts whose windows are shuffled together."""
    learning_rate: float = 3e-4
    """Learning rate of Adam."""
    warm_up_share: float = 0.02
    """Share of the steps over which the learning rate rises from zero."""
    decay_share: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    dead_after_tokens: int = 10_000_000
    """Tokens without firing after which a latent counts as dead; see `with_mortal_latents` for short trainings."""
    normalize_activations: str = "expected_average_only_in"
    """Input normalisation of SAELens; it is folded into the weights at the end."""
    autocast: bool = False
    """Whether the SAE's matrix products run in bfloat16."""
    dtype: str = "float32"
    """Data type of the SAE; bfloat16 halves its memory and rounds steps at random. The target sets the model's."""
    seed: int = 0
    """Seed of the weights and of the order of the windows."""

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.training_tokens // self.batch_tokens

    def with_mortal_latents(self) -> TrainSettings:
        """Return settings in which a latent can be dead: an eighth of a training shorter than `dead_after_tokens`."""
        if self.dead_after_tokens <= self.training_tokens:
            return self
        return replace(self, dead_after_tokens=max(1, self.training_tokens // 8))

    def __post_init__(self) -> None:
        sizes = ("d_sae", "training_tokens", "batch_tokens", "context_size", "stream_window", "buffer_contexts")
        for name in (*sizes, "dead_after_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps < 1:
            raise UsageError(
                f"training_tokens = {self.training_tokens} are fewer than one batch of {self.batch_tokens} tokens"
            )
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.seed <= MOST_SEED:
            raise UsageError(f"seed must not be negative, nor above {MOST_SEED}; it is {self.seed}")
        if min(self.warm_up_share, self.decay_share) < 0 or self.warm_up_share + self.decay_share > 1:
            raise UsageError("warm_up_share and decay_share must not be negative, nor more than 1 together")
        if self.dtype == "float16":
            raise UsageError(
                "an SAE cannot be trained in dtype float16, in which Adam's ε and squared gradients are 0: "
                "give --dtype bfloat16 or float32"
            )
        if self.normalize_activations == "covariance_whitening":
            raise UsageError(
                "normalize_activations = covariance_whitening needs SAELens' own runner, which estimates the "
                "covariance: give none or expected_average_only_in"
            )
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")

    @property
    def stream(self) -> tuple[int | str, ...]:
        """Settings of the stream of activations; SAEs that agree on them can share a stream."""
        window = (self.context_size, self.stream_window, self.buffer_contexts)
        return (self.batch_tokens, *window, self.seed, self.dtype)

    @property
    def dead_after_steps(self) -> int:
        """Steps without firing after which a latent is dead."""
        return max(1, self.dead_after_tokens // self.batch_tokens)

    def filled_in(self, names: Collection[str]) -> dict[str, int]:
        """Return those of the fields that a config takes from the training, such as its number of steps."""
        dead_after = {"dead_after_steps": self.dead_after_steps, "dead_after_tokens": self.dead_after_tokens}
        return {k: v for k, v in {"total_steps": self.steps, **dead_after}.items() if k in names}


SETTING_TYPES: dict[str, Any] = get_type_hints(TrainSettings)
SETTING_NAMES = frozenset(SETTING_TYPES)


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Return the training settings among values by name; raise a UsageError if one of them is refused."""
    return TrainSettings(**{k: check_type(k, v, SETTING_TYPES[k]) for k, v in values.items() if k in SETTING_NAMES})
