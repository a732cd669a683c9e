"""Everything that decides an SAE's weights, and the folder whose name follows from it.

    <root>/<target>/<name>/<hash>/               cfg.json, sae_weights.safetensors, sparsity.safetensors, training.json,
                                                 trace.npz where the variant keeps one
    <root>/<target>/<name>/<hash>.checkpoint/    while it trains; removed at the end
    <root>/<target>/<name>/<hash>.snapshots/<step>/    the SAE as it was after so many steps, where somebody asked

The root is `--trained`, else the environment variable SAE_VARIANTS_TRAINED, else ~/.cache/sae_variants/trained.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_value
from sae_variants.common.values import check_type
from sae_variants.language_model.folders import model_id
from sae_variants.language_model.target import Target
from sae_variants.registry.build import make_config
from sae_variants.registry.variants import find_variant, split_part

CHECKPOINT_SUFFIX = ".checkpoint"
SNAPSHOTS_SUFFIX = ".snapshots"
RECORD = "training.json"
TRACE = "trace.npz"
"""Columns over the steps of the training, beside the weights or the checkpoint of a variant that keeps them."""
KEY = ("name", "model", "hook_name", "text", "text_version", "dtype", "fields")
"""What decides the weights, beside the settings."""
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How an SAE is trained; every field counts for the hash of the result."""

    d_sae: int = 16384
    """Number of latents."""
    training_tokens: int = 500_000_000
    """Tokens to train on, special tokens not counted."""
    batch_tokens: int = 4096
    """Tokens in a training step."""
    context_size: int = 128
    """Tokens in a context of the language model, BOS included."""
    stream_window: int = 8
    """Consecutive tokens that stay together when activations are shuffled; a variant's window if that does not fit."""
    buffer_contexts: int = 4096
    """Contexts whose windows are shuffled together."""
    learning_rate: float = 3e-4
    """Adam's learning rate."""
    warm_up_share: float = 0.02
    """Share of the steps over which the learning rate rises from zero."""
    decay_share: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    dead_after_tokens: int = 10_000_000
    """A latent that has not fired for this many tokens counts as dead."""
    normalize_activations: str = "expected_average_only_in"
    """SAELens' input normalisation; folded into the weights at the end."""
    autocast: bool = False
    """Run the SAE's products in bfloat16."""
    dtype: str = "float32"
    """Data type of the SAE; the language model's is the target's."""
    seed: int = 0
    """Seeds the weights and the order of the windows."""

    @property
    def steps(self) -> int:
        return self.training_tokens // self.batch_tokens

    def __post_init__(self) -> None:
        for name in ("d_sae", "training_tokens", "batch_tokens", "context_size", "stream_window", "buffer_contexts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps < 1:
            raise UsageError(
                f"training_tokens = {self.training_tokens} are fewer than one batch of {self.batch_tokens} tokens"
            )
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.seed < 0 or self.dead_after_tokens < 1:
            raise UsageError("seed must not be negative, and dead_after_tokens must be at least 1")
        if min(self.warm_up_share, self.decay_share) < 0 or self.warm_up_share + self.decay_share > 1:
            raise UsageError("warm_up_share and decay_share must not be negative, nor more than 1 together")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")

    @property
    def stream(self) -> tuple[Any, ...]:
        """SAEs that agree on these can share a stream."""
        return (
            self.batch_tokens, self.context_size, self.stream_window, self.buffer_contexts, self.seed, self.dtype
        )  # fmt: skip


SETTING_TYPES: dict[str, Any] = get_type_hints(TrainSettings)
SETTING_NAMES = frozenset(SETTING_TYPES)


def trained_root(root: str | Path | None = None) -> Path:
    return Path(root or os.environ.get("SAE_VARIANTS_TRAINED") or Path.home() / ".cache" / "sae_variants" / "trained")


@dataclass(frozen=True)
class Plan:
    name: str
    target: Target
    settings: TrainSettings
    fields: dict[str, Any]
    root: Path
    given: tuple[str, ...] = ()
    """Fields that were set beside the recipe."""
    part: str = ""
    """Which SAE of this training is meant, where there are several: `lower`."""

    @property
    def full_name(self) -> str:
        return f"{self.name}:{self.part}" if self.part else self.name

    @cached_property
    def label(self) -> str:
        """The name and what differs from the target's recipe, but for the seed: `temporal[k=16 window=4]`."""
        recipe = make_plan(self.name, self.target).values
        changed = {f: self.values[f] for f in sorted(self.given) if f != "seed" and self.values[f] != recipe[f]}
        shown = " ".join(f"{f}={v:g}" if isinstance(v, float) else f"{f}={v}" for f, v in changed.items())
        return f"{self.full_name}[{shown}]" if changed else self.full_name

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every setting and every field of the config."""
        return {**asdict(self.settings), **self.resolved}

    @cached_property
    def key(self) -> dict[str, Any]:
        """What decides the weights."""
        return {
            "name": self.name,
            "model": model_id(self.target.model_name),
            "hook_name": self.target.hook_name,
            "text": self.target.train_dataset or self.target.text_id,
            "text_version": self.target.text_version,
            "settings": asdict(self.settings),
            "dtype": self.target.dtype,
            "fields": self.resolved,
        }

    @cached_property
    def kind(self) -> str:
        """Hash of all that decides the weights but the seed."""
        return hash_kind(self.key)

    @property
    def resolved(self) -> dict[str, Any]:
        """Every field of the variant's config, defaults included: a changed default is another SAE."""
        cfg = make_config(self.name, d_in=1, **self.sized)
        return {f: getattr(cfg, f) for f in sorted(find_variant(self.name).field_names - SETTING_NAMES)}

    @cached_property
    def folder(self) -> Path:
        return self.root / self.target.name / self.name.replace(":", "_") / hash_value(self.key)

    @property
    def sae_folder(self) -> Path:
        """Where the SAE lies that is meant: the folder, or its part's folder in it."""
        return self.folder / self.part

    @property
    def sized(self) -> dict[str, Any]:
        """Arguments of `_register.config` beside d_in."""
        return {"d_sae": self.settings.d_sae, **self.fields}

    @property
    def checkpoint(self) -> Path:
        return self.folder.with_name(self.folder.name + CHECKPOINT_SUFFIX)

    @property
    def is_trained(self) -> bool:
        return (self.folder / RECORD).is_file()

    def snapshot_step(self, share: float) -> int:
        """The step after which a share of the training is done."""
        return min(max(1, round(share * self.settings.steps)), self.settings.steps)

    def snapshot(self, share: float) -> Path:
        """The folder of the SAE as it was after a share of its training."""
        snapshots = self.folder.with_name(self.folder.name + SNAPSHOTS_SUFFIX)
        return snapshots / str(self.snapshot_step(share)) / self.part

    def lacks(self, snapshots: tuple[float, ...]) -> list[int]:
        """Steps of the snapshots that are not there."""
        return [self.snapshot_step(share) for share in snapshots if not self.snapshot(share).is_dir()]


def hash_kind(key: dict[str, Any]) -> str:
    """The same of a `key`, as it stands in a trained SAE's record."""
    settings = {name: value for name, value in key["settings"].items() if name != "seed"}
    return hash_value({**{name: key[name] for name in KEY}, "settings": settings})


def make_plan(
    name: str, target: Target, overrides: dict[str, Any] | None = None, root: str | Path | None = None
) -> Plan:
    """The plan for one SAE: the target's recipe, the target's recipe for this name, then the overrides.

    Overrides may name fields of `TrainSettings` or of the variant's config. Fields that the variant does not have are
    left out when they come from the recipe and refused when they are overrides; see `check_overrides` for several SAEs.
    """
    overrides = overrides or {}
    variant = find_variant(name)
    name, part = split_part(name)
    known = variant.field_names
    adapted = variant.config_class.recipe(target.train)
    wanted = {**target.train, **adapted, **target.variants.get(name, {}), **overrides}
    settings = TrainSettings(**{k: check_type(k, v, SETTING_TYPES[k]) for k, v in wanted.items() if k in SETTING_TYPES})
    chosen = {k: v for k, v in wanted.items() if k in known and k not in SETTING_NAMES}
    made = Plan(name, target, settings, chosen, trained_root(root), tuple(overrides), part)
    window = make_config(name, d_in=1, **made.sized).window
    if settings.stream_window % window == 0:
        return made
    if "stream_window" in overrides:
        raise UsageError(f"window = {window} of {name} does not divide stream_window = {settings.stream_window}")
    batch = max(1, settings.batch_tokens // window) * window
    fitting = replace(settings, stream_window=window, batch_tokens=batch)
    return replace(made, settings=fitting)


def applicable_overrides(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of the overrides that the SAE of that name has: one command may set fields of several SAEs."""
    own = find_variant(name).field_names | SETTING_NAMES
    return {field: value for field, value in overrides.items() if field in own}


def check_overrides(names: list[str], overrides: dict[str, Any]) -> None:
    """UsageError for an override that is no training setting and no field of any of the SAEs."""
    known = SETTING_NAMES.union(*(find_variant(name).field_names for name in names))
    for override in overrides:
        if override == "k" and "k" not in known:
            raise UsageError(f"{', '.join(names)} has no k: its L0 follows from other fields, e.g. --l1-coefficient")
        check_name("option", override, known)
