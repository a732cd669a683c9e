"""Discovery of variants, and the decorator that registers a training class with SAELens and with our factory.

The name of a variant is the name of its file. The architecture string, which SAELens writes into checkpoints, comes
from the config class. The two may differ, because SAELens already uses some strings, such as `temporal`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sae_variants.common.errors import UsageError, check_name
from sae_variants.registry.contract import FROM_SETTINGS, VariantConfig, config_hooks
from sae_variants.registry.plugins import import_plugin, merge_plugins, read_summary

T = TypeVar("T", bound=type)

STOCK_PREFIX = "stock:"
UNSCORABLE = {
    "stock:abstopk": "its latents also fire below 0, and SAEBench counts only those above 0 as firing",
}
"""Architectures of SAELens whose scores would be wrong, with the reason."""


@dataclass(frozen=True)
class Variant:
    """A training class with its config class, ours or a stock one of SAELens."""

    name: str
    sae_class: type
    config_class: type[VariantConfig]

    @property
    def l0_field(self) -> str:
        """Field that determines L0."""
        known = ("k", "max_iterations", "l0_coefficient")
        return next((field for field in known if field in self.field_names), "l1_coefficient")

    @property
    def field_names(self) -> set[str]:
        """Config fields that a user may set; the others follow from the target and the training settings."""
        names = {f.name for f in fields(self.config_class)}
        return names - {"d_in", "device", "metadata", "reshape_activations", *FROM_SETTINGS}

    @property
    def refuses_token_norms(self) -> bool:
        """Whether SAELens' auxiliary losses compare activations before and after a normalisation of each token."""
        from sae_lens.saes.gated_sae import GatedTrainingSAE
        from sae_lens.saes.topk_sae import TopKTrainingSAE

        return issubclass(self.sae_class, TopKTrainingSAE | GatedTrainingSAE)

    @property
    def from_settings(self) -> set[str]:
        """Config fields that the trainer fills in."""
        return {f.name for f in fields(self.config_class)} & FROM_SETTINGS


_variants: dict[str, Variant] = {}


def register(config_class: Any) -> Callable[[T], T]:
    """Register a `TrainingSAE` subclass under its module's file name, with SAELens and with `build`.

    Args:
        config_class: Config dataclass of the training class; preferably it inherits `VariantConfig`.
    """

    def decorate(sae_class: T) -> T:
        from sae_lens.registry import register_sae_training_class

        name = sae_class.__module__.rpartition(".")[2]
        register_sae_training_class(config_class.architecture(), sae_class, config_class)
        _variants[name] = Variant(name, sae_class, config_hooks(config_class))
        return sae_class

    return decorate


def variant_modules() -> dict[str, str]:
    """Return every variant's module by name, without importing it.

    The variants are the files at the root of `sae_variants` whose names have no leading underscore, and the entries of
    other packages in the entry-point group `sae_variants`.
    """
    folder = str(Path(__file__).parents[1])
    files = sorted(m.name for m in pkgutil.iter_modules([folder]) if not m.ispkg and not m.name.startswith("_"))
    return merge_plugins("sae_variants", {name: f"sae_variants.{name}" for name in files})


def own_variant_names() -> list[str]:
    """Return the names of the variants that are not SAELens' own."""
    return list(variant_modules())


def variant_summaries() -> dict[str, str]:
    """Return the first line of each variant's docstring by name."""
    return {name: read_summary(module) for name, module in variant_modules().items()}


def import_variants() -> None:
    """Import every variant, which registers it."""
    import sae_lens  # noqa: F401  first: its import triggers ours, which must not find a variant half imported

    for module in variant_modules().values():
        import_plugin(module)


def stock_names() -> list[str]:
    """Return SAELens' own architectures that reconstruct their input, as `stock:<architecture>`."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    ours = {v.config_class.architecture() for v in _variants.values()}
    names = {STOCK_PREFIX + name for name in SAE_TRAINING_CLASS_REGISTRY.keys() - ours if "transcoder" not in name}
    return sorted(names - UNSCORABLE.keys())


def variant_names() -> list[str]:
    """Return every name that `build` accepts."""
    import_variants()
    return own_variant_names() + stock_names()


def scorable_names() -> list[str]:
    """Return every name of an SAE that can be scored: those that `build` accepts, and their parts as `name:part`."""
    names = variant_names()
    return names + [f"{name}:{part}" for name in own_variant_names() for part in _variants[name].config_class.parts]


def split_part(name: str) -> tuple[str, str]:
    """Return the name that is trained and its part: `hierarchical:lower` is the part `lower` of `hierarchical`.

    The part is "" for a name without one.
    """
    whole, _, part = name.partition(":")
    return (name, "") if name.startswith(STOCK_PREFIX) or not part else (whole, part)


def is_variant(name: str) -> bool:
    """Return whether a name has the form of a variant's or a part's; unlike `find_variant`, import nothing."""
    return name.startswith(STOCK_PREFIX) or split_part(name)[0] in own_variant_names()


def check_variant_name(name: str) -> None:
    """Raise a UsageError for a name that is no variant's, as far as it shows without importing SAELens for seconds."""
    if name in UNSCORABLE:
        raise UsageError(f"unknown SAE {name!r}: it is not offered, because {UNSCORABLE[name]}")
    if ":" not in name:
        check_name("SAE", name, [*own_variant_names(), f"{STOCK_PREFIX}ARCHITECTURE"])


def find_variant(name: str) -> Variant:
    """Return the variant of that name or with that part; raise a UsageError with the nearest names if none exists."""
    check_variant_name(name)
    check_name("SAE", name, scorable_names())
    name, _ = split_part(name)
    if not name.startswith(STOCK_PREFIX):
        return _variants[name]
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(name.removeprefix(STOCK_PREFIX))
    return Variant(name, sae_class, config_hooks(config_class))
