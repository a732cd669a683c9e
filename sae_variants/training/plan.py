"""Plans: everything that determines an SAE's weights, and the folder whose name follows from it.

    <root>/<target>/<name>/<hash>/                     cfg.json, sae_weights.safetensors, sparsity.safetensors,
                                                       training.json, and trace.npz if the variant keeps a trace
    <root>/<target>/<name>/<hash>.checkpoint/          during training; removed at the end
    <root>/<target>/<name>/<hash>.snapshots/<step>/    the SAE after that step, if snapshots were requested

The root is `--trained`, else the environment variable SAE_VARIANTS_TRAINED, else ~/.cache/sae_variants/trained.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_value
from sae_variants.language_model.folders import model_id
from sae_variants.language_model.target import Target
from sae_variants.registry.build import make_config
from sae_variants.registry.contract import config_hooks
from sae_variants.registry.variants import STOCK_PREFIX, find_variant, split_part
from sae_variants.training.settings import SETTING_NAMES, TrainSettings, make_settings

CHECKPOINT_SUFFIX = ".checkpoint"
SNAPSHOTS_SUFFIX = ".snapshots"
RECORD = "training.json"
"""Name of the file that records how an SAE was trained."""
TRACE = "trace.npz"
"""Name of the file, beside the weights or the checkpoint, with a variant's trace over the training steps."""
KEY = ("name", "model", "hook_name", "text", "text_version", "dtype", "fields")
"""Entries of a training record, beside the settings, that determine the weights."""
FIXED = "fixed"
"""Entry of the key with the field that the user keeps at its value, although a short training would change it."""
RATE = "topk_threshold_lr"
TIME_CONSTANTS = 10
"""Time constants of the running mean of a stock SAE's threshold in a training, at least."""


def trained_root(root: str | Path | None = None) -> Path:
    """Return the root of trained SAEs: the given one, else that of the environment, else the default."""
    return Path(root or os.environ.get("SAE_VARIANTS_TRAINED") or Path.home() / ".cache" / "sae_variants" / "trained")


@dataclass(frozen=True)
class Plan:
    """How one SAE is trained, and where."""

    name: str
    """Name of the variant, without a part."""
    target: Target
    """Language model, hook and text."""
    settings: TrainSettings
    """Training settings."""
    fields: dict[str, Any]
    """Config fields of the variant that the recipe or the user sets."""
    root: Path
    """Root of trained SAEs."""
    given: tuple[str, ...] = ()
    """Settings and fields that the user sets, beside the recipe."""
    part: str = ""
    """The requested part of a training that gives several SAEs, such as `lower`."""

    @property
    def learns(self) -> bool:
        """Whether its variant is trained: `random` is not."""
        return config_hooks(find_variant(self.name).config_class).learns

    @property
    def full_name(self) -> str:
        """The name with its part, such as `hierarchical:lower`."""
        return f"{self.name}:{self.part}" if self.part else self.name

    @cached_property
    def label(self) -> str:
        """The name and all differences from the target's recipe except the seed: `temporal[k=16 window=4]`."""
        recipe = self._recipe
        changed = {f: self.values[f] for f in sorted(self.given) if f != "seed" and self.values[f] != recipe[f]}
        if self._keeps_rate:
            changed = dict(sorted({**changed, RATE: self.values[RATE]}.items()))
        shown = " ".join(f"{f}={v:g}" if isinstance(v, float) else f"{f}={v}" for f, v in changed.items())
        return f"{self.full_name}[{shown}]" if changed else self.full_name

    @property
    def title(self) -> str:
        """The label with the seed."""
        return f"{self.label} (seed {self.settings.seed})"

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        """Every setting and config field by name, as the target's recipe has it."""
        return make_plan(self.name, self.target).values

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every setting and every config field by name."""
        return {**asdict(self.settings), **self.resolved}

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that determines the weights."""
        return {
            "name": self.name,
            "model": model_id(self.target.model_name),
            "hook_name": self.target.hook_name,
            "text": self.target.train_text_id,
            "text_version": self.target.text_version,
            "settings": asdict(self.settings),
            "dtype": self.target.dtype,
            "fields": self.key_fields,
            **({FIXED: RATE} if self._keeps_rate else {}),
        }

    @property
    def raised_rate(self) -> float | None:
        """The rate of a stock SAE's threshold where it is above that of the recipe; None for any other SAE.

        A slow running mean from 0 has not arrived at the end of a short training. The rate is not part of the key; in
        trainings that are long enough for the rate of the recipe, it is that rate.
        """
        rate = self.resolved.get(RATE)
        if rate is None or not self.name.startswith(STOCK_PREFIX):
            return None
        raised = min(1.0, TIME_CONSTANTS / self.settings.steps)
        return raised if raised > rate else None

    @cached_property
    def _keeps_rate(self) -> bool:
        """Whether the user gives the recipe's rate of a threshold, which would be raised otherwise."""
        return RATE in self.given and self.raised_rate is not None and self.values[RATE] == self._recipe[RATE]

    @cached_property
    def kind(self) -> str:
        """Hash of everything that determines the weights except the seed."""
        return hash_kind(self.key)

    @property
    def resolved(self) -> dict[str, Any]:
        """Every field of the variant's config, defaults included, because a changed default gives another SAE."""
        cfg = make_config(self.name, d_in=1, **self.sized)
        return {f: getattr(cfg, f) for f in sorted(find_variant(self.name).field_names - SETTING_NAMES)}

    @property
    def key_fields(self) -> dict[str, Any]:
        """The resolved fields without those that older SAEs lack, where they have the value that means the same."""
        added = find_variant(self.name).config_class.added
        return {name: value for name, value in self.resolved.items() if name not in added or value != added[name]}

    @cached_property
    def folder(self) -> Path:
        """Folder of the trained SAE."""
        return self.root / self.target.name / self.name.replace(":", "_") / hash_value(self.key)

    @property
    def sae_folder(self) -> Path:
        """Folder of the requested SAE: `folder`, or the part's folder inside it."""
        return self.folder / self.part

    @property
    def sized(self) -> dict[str, Any]:
        """Arguments of `make_config` beside d_in."""
        return {"d_sae": self.settings.d_sae, **self.fields}

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder.with_name(self.folder.name + CHECKPOINT_SUFFIX)

    @property
    def is_trained(self) -> bool:
        """Whether the SAE is finished."""
        return (self.folder / RECORD).is_file()

    def snapshot_step(self, share: float) -> int:
        """Return the step after which a share of the training is complete."""
        return min(max(1, round(share * self.settings.steps)), self.settings.steps)

    def snapshot(self, share: float) -> Path:
        """Return the folder of the snapshot after a share of the training."""
        return self.folder.with_name(self.folder.name + SNAPSHOTS_SUFFIX) / str(self.snapshot_step(share)) / self.part

    def lacks(self, snapshots: tuple[float, ...]) -> list[int]:
        """Return the steps of those of the snapshots, given as shares of the training, that do not exist."""
        return [self.snapshot_step(share) for share in snapshots if not self.snapshot(share).is_dir()]


def hash_kind(key: dict[str, Any]) -> str:
    """Return the hash of a plan's key, or of a training record, without its seed."""
    settings = {name: value for name, value in key["settings"].items() if name != "seed"}
    fixed = {FIXED: key[FIXED]} if FIXED in key else {}
    return hash_value({**{name: key[name] for name in KEY}, **fixed, "settings": settings})


def make_plan(
    name: str, target: Target, overrides: dict[str, Any] | None = None, root: str | Path | None = None
) -> Plan:
    """Return the plan of an SAE.

    Values come from the target's recipe, then from its recipe for this variant, then from the overrides. Fields that
    the variant does not have are ignored; `check_overrides` refuses them in overrides.

    Args:
        name: Name of the SAE, with or without a part.
        target: Language model, hook and text.
        overrides: Fields of `TrainSettings` or of the variant's config.
        root: Root of trained SAEs.

    Raises:
        UsageError: A value is refused.
    """
    overrides = overrides or {}
    variant = find_variant(name)
    name, part = split_part(name)
    adapted = variant.config_class.recipe(target.train)
    values = {**target.train, **adapted, **target.variants.get(name, {}), **overrides}
    settings = make_settings(values)
    settings = settings if "dead_after_tokens" in overrides else settings.with_mortal_latents()
    fields = {k: v for k, v in values.items() if k in variant.field_names - SETTING_NAMES}
    plan = Plan(name, target, settings, fields, trained_root(root), tuple(overrides), part)
    known = {"normalize_activations": settings.normalize_activations, **settings.filled_in(variant.from_settings)}
    window = make_config(name, d_in=1, **known, **plan.sized).window
    if settings.normalize_activations == "layer_norm" and variant.refuses_token_norms:
        raise UsageError(
            f"{name} cannot be trained with normalize_activations = layer_norm: its auxiliary "
            "loss compares activations before and after it; give none or expected_average_only_in"
        )
    if settings.stream_window % window == 0:
        return plan
    if "stream_window" in overrides:
        raise UsageError(f"window = {window} of {name} does not divide stream_window = {settings.stream_window}")
    batch = max(1, settings.batch_tokens // window) * window
    return replace(plan, settings=replace(settings, stream_window=window, batch_tokens=batch))


def applicable_overrides(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return those of the overrides that an SAE has; a command may set fields of several SAEs."""
    names = find_variant(name).field_names | SETTING_NAMES
    return {field: value for field, value in overrides.items() if field in names}


def check_overrides(names: list[str], overrides: dict[str, Any]) -> None:
    """Raise a UsageError for an override that is neither a training setting nor a field of any of the SAEs."""
    known = SETTING_NAMES.union(*(find_variant(name).field_names for name in names))
    for override in overrides:
        if override == "k" and "k" not in known:
            raise UsageError(f"{', '.join(names)} has no k: L0 depends on {find_variant(names[0]).l0_field}")
        check_name("option", override, known)
