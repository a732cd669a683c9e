"""One decorator that makes a training class known to SAELens and to our factory.

The name of a variant is the name of its file. The architecture string, which SAELens writes into checkpoints, comes
from the config class; it may differ from the name, because SAELens already owns some strings (`temporal`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sae_variants.common.errors import check_name
from sae_variants.registry.contract import FROM_SETTINGS, VariantConfig, config_hooks
from sae_variants.registry.plugins import import_plugin, merge_plugins, read_summary

T = TypeVar("T", bound=type)

STOCK_PREFIX = "stock:"


@dataclass(frozen=True)
class Variant:
    name: str
    sae_class: type
    config_class: type[VariantConfig]

    @property
    def field_names(self) -> set[str]:
        """Config fields a user may set; d_in, device and metadata follow from the target, others from the settings."""
        names = {f.name for f in fields(self.config_class)}
        return names - {"d_in", "device", "metadata", "reshape_activations", *FROM_SETTINGS}

    @property
    def from_settings(self) -> set[str]:
        """Config fields that whoever trains fills in."""
        return {f.name for f in fields(self.config_class)} & FROM_SETTINGS


_variants: dict[str, Variant] = {}


def register(config_class: Any) -> Callable[[T], T]:
    """Registers a `TrainingSAE` subclass with SAELens and with the factory, under its module's file name."""

    def decorate(sae_class: T) -> T:
        from sae_lens.registry import register_sae_training_class

        name = sae_class.__module__.rpartition(".")[2]
        register_sae_training_class(config_class.architecture(), sae_class, config_class)
        _variants[name] = Variant(name, sae_class, config_hooks(config_class))
        return sae_class

    return decorate


def variant_modules() -> dict[str, str]:
    """Every variant with its module: the files beside this one without an underscore, and those of other packages.

    Another package names its own in the entry-point group `sae_variants`. Imports nothing.
    """
    folder = str(Path(__file__).parents[1])
    files = sorted(m.name for m in pkgutil.iter_modules([folder]) if not m.ispkg and not m.name.startswith("_"))
    return merge_plugins("sae_variants", {name: f"sae_variants.{name}" for name in files})


def own_variant_names() -> list[str]:
    """Names of the variants that are not SAELens' own."""
    return list(variant_modules())


def variant_summaries() -> dict[str, str]:
    """Each of these variants with its one line."""
    return {name: read_summary(module) for name, module in variant_modules().items()}


def import_variants() -> None:
    """Imports every variant, which registers it."""
    import sae_lens  # noqa: F401  first: it imports us, and would find what imports it half done

    for module in variant_modules().values():
        import_plugin(module)


def stock_names() -> list[str]:
    """SAELens' own architectures that reconstruct their input, as `stock:<architecture>`."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    ours = {v.config_class.architecture() for v in _variants.values()}
    return sorted(
        STOCK_PREFIX + name for name in SAE_TRAINING_CLASS_REGISTRY if name not in ours and "transcoder" not in name
    )


def variant_names() -> list[str]:
    """Every name that `build` takes."""
    import_variants()
    return own_variant_names() + stock_names()


def scorable_names() -> list[str]:
    """Every name of an SAE that can be scored: those that `build` takes, and their parts as `name:part`."""
    found = variant_names()
    return found + [f"{name}:{part}" for name in own_variant_names() for part in _variants[name].config_class.parts]


def split_part(name: str) -> tuple[str, str]:
    """The name that is trained, and the part of it or "": `hierarchical:lower` is a part of `hierarchical`."""
    whole, _, part = name.partition(":")
    return (name, "") if name.startswith(STOCK_PREFIX) or not part else (whole, part)


def find_variant(name: str) -> Variant:
    """The variant of that name, or whose part it is. UsageError with the nearest names if there is none."""
    check_name("SAE", name, scorable_names())
    name, _ = split_part(name)
    if not name.startswith(STOCK_PREFIX):
        return _variants[name]
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(name.removeprefix(STOCK_PREFIX))
    return Variant(name, sae_class, config_hooks(config_class))
