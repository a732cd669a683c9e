"""One decorator that makes a training class known to SAELens and to our factory.

The name of a variant is the name of its file. The architecture string, which SAELens writes into checkpoints, comes
from the config class; it may differ from the name, because SAELens already owns some strings (`temporal`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sae_variants.common.errors import UsageError, one_of
from sae_variants.registry import plugins as _plugins

T = TypeVar("T", bound=type)

STOCK_PREFIX = "stock:"
FROM_SETTINGS = {"total_steps", "dead_after_steps", "dead_after_tokens"}


@dataclass(frozen=True)
class Variant:
    name: str
    sae_class: type
    config_class: type

    @property
    def field_names(self) -> set[str]:
        """Config fields a user may set; d_in, device and metadata follow from the target, others from the settings."""
        names = {f.name for f in fields(self.config_class)}
        return names - {"d_in", "device", "metadata", "reshape_activations", *FROM_SETTINGS}

    @property
    def from_settings(self) -> set[str]:
        """Config fields that whoever trains fills in."""
        return {f.name for f in fields(self.config_class)} & FROM_SETTINGS

    @property
    def parts(self) -> tuple[str, ...]:
        """Other SAEs that its training gives, each in a folder of its name beside the first."""
        return getattr(self.config_class, "parts", ())


_variants: dict[str, Variant] = {}


def register(config_class: type) -> Callable[[T], T]:
    """Registers a `TrainingSAE` subclass with SAELens and with the factory, under its module's file name."""

    def decorate(sae_class: T) -> T:
        from sae_lens.registry import register_sae_training_class

        name = sae_class.__module__.rpartition(".")[2]
        register_sae_training_class(config_class.architecture(), sae_class, config_class)
        _variants[name] = Variant(name, sae_class, config_class)
        return sae_class

    return decorate


def places() -> dict[str, str]:
    """Every variant with its module: the files beside this one without an underscore, and those of other packages.

    Another package names its own in the entry-point group `sae_variants`. Imports nothing.
    """
    folder = str(Path(__file__).parents[1])
    files = sorted(m.name for m in pkgutil.iter_modules([folder]) if not m.ispkg and not m.name.startswith("_"))
    return _plugins.joined("sae_variants", {name: f"sae_variants.{name}" for name in files})


def own_names() -> list[str]:
    """Names of the variants that are not SAELens' own."""
    return list(places())


def summaries() -> dict[str, str]:
    """Each of these variants with its one line."""
    return {name: _plugins.first_line(module) for name, module in places().items()}


def import_variants() -> None:
    """Imports every variant, which registers it."""
    import sae_lens  # noqa: F401  first: it imports us, and would find what imports it half done

    for module in places().values():
        _plugins.load(module)


def stock_names() -> list[str]:
    """SAELens' own architectures that reconstruct their input, as `stock:<architecture>`."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    ours = {v.config_class.architecture() for v in _variants.values()}
    return sorted(
        STOCK_PREFIX + name for name in SAE_TRAINING_CLASS_REGISTRY if name not in ours and "transcoder" not in name
    )


def names() -> list[str]:
    """Every name that `build` takes."""
    import_variants()
    return own_names() + stock_names()


def scorable() -> list[str]:
    """Every name of an SAE that can be scored: those that `build` takes, and their parts as `name:part`."""
    found = names()
    return found + [f"{name}:{part}" for name in own_names() for part in _variants[name].parts]


def split(name: str) -> tuple[str, str]:
    """The name that is trained, and the part of it or "": `hierarchical:lower` is a part of `hierarchical`."""
    whole, _, part = name.partition(":")
    return (name, "") if name.startswith(STOCK_PREFIX) or not part else (whole, part)


def resolve(name: str) -> Variant:
    """The variant of that name, or whose part it is. UsageError with the nearest names if there is none."""
    one_of("SAE", name, scorable())
    name, _ = split(name)
    if not name.startswith(STOCK_PREFIX):
        return _variants[name]
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(name.removeprefix(STOCK_PREFIX))
    return Variant(name, sae_class, config_class)


def matryoshka_widths(d_sae: int) -> list[int]:
    """Nested widths d_sae/8, /4, /2, /1: SAELens gives none, and refuses to build without."""
    return sorted({max(1, d_sae // 8), max(1, d_sae // 4), max(1, d_sae // 2), d_sae})


def check_type(what: str, value: Any, hint: Any) -> None:
    """UsageError unless a value is of the annotated kind; a whole number serves as a float, NaN as nothing."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {float: (int, float), int: (int,), str: (str,), bool: (bool,), list: (list,), NoneType: (NoneType,)}
    for choice in choices:
        origin = get_origin(choice) or choice
        if origin is Literal and value in get_args(choice):
            return
        if origin not in kinds:
            if origin is not Literal:
                return
        elif isinstance(value, kinds[origin]) and (origin is bool or not isinstance(value, bool)) and value == value:
            return
    wanted = " or ".join(
        ", ".join(map(str, get_args(c))) if get_origin(c) is Literal else getattr(c, "__name__", str(c))
        for c in choices
    )
    raise UsageError(f"{what} must be {wanted}, not {value!r}")


def config(name: str, *, d_in: int, d_sae: int, **overrides: Any) -> Any:
    """The config of a variant. UsageError for a field it does not have or a value that it refuses."""
    variant = resolve(name)
    for field in overrides:
        one_of(f"option of {name}", field, variant.field_names | variant.from_settings | {"device"})
    for what, size in (("d_in", d_in), ("d_sae", d_sae)):
        check_type(what, size, int)
    if d_in < 1 or d_sae < 1:
        raise UsageError(f"d_in and d_sae must be at least 1, not {d_in} and {d_sae}")
    hints = get_type_hints(variant.config_class)
    for field, value in overrides.items():
        hint = hints.get(field, Any)
        check_type(f"{field} of {name}", value, hint)
        if type(value) is int and float in (hint, *get_args(hint)) and int not in get_args(hint):
            overrides[field] = float(value)  # 3 and 3.0 are one SAE
    if (k := overrides.get("k")) is not None and not 0 < k <= d_sae:
        raise UsageError(f"k must be above 0 and at most d_sae = {d_sae}, not {k}")
    if "matryoshka_widths" in variant.field_names:
        overrides.setdefault("matryoshka_widths", matryoshka_widths(d_sae))
    try:
        return variant.config_class(d_in=d_in, d_sae=d_sae, **overrides)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from error


def build(name: str, *, d_in: int, d_sae: int, seed: int | None = None, **overrides: Any) -> Any:
    """A fresh training SAE.

    Args:
        name: one of `names()`.
        d_in, d_sae: widths of the activation and of the latents.
        seed: seeds torch before the weights are drawn; None leaves torch's generator alone.
        overrides: any field of the variant's config, e.g. `k=32`.

    Raises:
        UsageError: unknown name or field, or a value that the config refuses.
    """
    import torch
    from sae_lens.saes.batchtopk_sae import BatchTopK as SlowBatchTopK

    from sae_variants.ops.batch_topk import BatchTopK

    cfg = config(name, d_in=d_in, d_sae=d_sae, **overrides)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        sae = resolve(name).sae_class(cfg)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UsageError(
            f"cannot build {name} with d_in = {d_in}, d_sae = {d_sae}: {str(error).splitlines()[0]}"
        ) from error
    if type(sae.activation_fn) is SlowBatchTopK:
        sae.activation_fn = BatchTopK(sae.activation_fn.k)  # equal to the bit, and several times faster on CPU
    return sae


def load(path: str | Path, device: str = "cpu") -> Any:
    """A saved SAE in inference form, from a folder in SAELens' layout.

    Raises:
        UsageError: no such folder, no config in it, or weights that cannot be read.
    """
    from sae_lens import SAE
    from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
    from safetensors import SafetensorError

    import_variants()
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(
            f"no folder {str(folder)!r}: give a variant's name, a folder with {SAE_CFG_FILENAME}, or a Hub id"
        )
    for file in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (folder / file).is_file():
            raise UsageError(f"{folder} is not a saved SAE: it has no {file}")
    try:
        return SAE.load_from_disk(folder, device=device)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"cannot load the SAE in {folder}: {str(error).splitlines()[0]}") from error


def latent_groups(sae: Any) -> dict[str, slice]:
    """Parts of the latents that its training told apart, such as slow and fast; empty where there are none.

    A trained SAE is a stock one; what it was trained as, and with which settings, stands in its metadata.
    """
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    metadata = sae.cfg.metadata
    trained_as = getattr(metadata, "training_architecture", None) or ""
    config_class: Any = SAE_TRAINING_CLASS_REGISTRY.get(trained_as, (None, None))[1]
    if not hasattr(config_class, "latent_groups"):
        return {}
    details = metadata.training_architecture_details
    known = {f.name for f in fields(config_class)}
    config = config_class(d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, **{k: v for k, v in details.items() if k in known})
    return config.latent_groups
