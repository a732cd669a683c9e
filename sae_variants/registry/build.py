"""Build a variant's config or SAE from its name, and load a saved SAE from its folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from sae_variants.common.errors import UsageError, check_name, describe_error
from sae_variants.common.json_files import refuse_pointer
from sae_variants.common.values import check_type
from sae_variants.registry.contract import VariantConfig, config_hooks
from sae_variants.registry.saved_config import CONFIG, WEIGHTS, check_config, read_config
from sae_variants.registry.variants import find_variant, import_variants

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_sae_loaders import PretrainedSaeDiskLoader
    from sae_lens.saes.sae import SAE, TrainingSAE
    from torch import Tensor


def matryoshka_widths(d_sae: int) -> list[int]:
    """Return nested widths d_sae/8, /4, /2, /1; SAELens has no default and refuses to build without them."""
    return sorted({max(1, d_sae // 8), max(1, d_sae // 4), max(1, d_sae // 2), d_sae})


def make_config(name: str, *, d_in: int, d_sae: int, **overrides: Any) -> VariantConfig:
    """Return the config of a variant.

    Args:
        name: One of `names()`.
        d_in: Width of the activations.
        d_sae: Number of latents.
        overrides: Any field of the variant's config.

    Raises:
        UsageError: A field is unknown, or its value is refused.
    """
    variant = find_variant(name)
    for field in overrides:
        check_name(f"option of {name}", field, variant.field_names | variant.from_settings | {"device"})
    d_in, d_sae = check_type("d_in", d_in, int), check_type("d_sae", d_sae, int)
    if d_in < 1 or d_sae < 1:
        raise UsageError(f"d_in and d_sae must be at least 1, not {d_in} and {d_sae}")
    hints = get_type_hints(variant.config_class)
    # 3 and 3.0 are the same SAE, so each value is converted to the type of its field.
    overrides = {f: check_type(f"{f} of {name}", value, hints.get(f, Any)) for f, value in overrides.items()}
    usual = {f: getattr(variant.config_class, f, None) for f in overrides}
    overrides = {f: usual[f] if value == usual[f] == 0 else value for f, value in overrides.items()}  # 0 for 0.0
    for field, value in overrides.items():
        if field.endswith("_coefficient") and value is not None and value < 0:
            raise UsageError(f"{name}: {field} must not be negative, it is {value:g}")
    if (iterations := overrides.get("max_iterations")) is not None and iterations < 1:
        raise UsageError(f"max_iterations of {name} must be at least 1, not {iterations}")
    if (rate := overrides.get("topk_threshold_lr")) is not None and not 0 < rate <= 1:
        raise UsageError(f"topk_threshold_lr of {name} must be above 0 and at most 1, not {rate:g}")
    if (k := overrides.get("k")) is not None and not 0 < k <= d_sae:
        raise UsageError(f"k must be above 0 and at most d_sae = {d_sae}, not {k}")
    if name == "stock:matryoshka_batchtopk":
        overrides.setdefault("matryoshka_widths", matryoshka_widths(d_sae))
    try:
        return variant.config_class(d_in=d_in, d_sae=d_sae, **overrides)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from error


def build(name: str, *, d_in: int, d_sae: int, seed: int | None = None, **overrides: Any) -> TrainingSAE[Any]:
    """Build a fresh SAE for training.

    Args:
        name: One of `names()`.
        d_in: Width of the activations.
        d_sae: Number of latents.
        seed: Seed of torch's generator before the weights are initialised; None leaves the generator unchanged.
        overrides: Any field of the variant's config, such as `k=32`.

    Returns:
        The SAE with freshly initialised weights.

    Raises:
        UsageError: The name or a field is unknown, or the config refuses a value.
    """
    import torch
    from sae_lens.saes.batchtopk_sae import BatchTopK as SlowBatchTopK

    from sae_variants.ops.batch_topk import BatchTopK

    cfg = make_config(name, d_in=d_in, d_sae=d_sae, **overrides)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        sae = find_variant(name).sae_class(cfg)
    except (ValueError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"cannot build {name} with d_in = {d_in}, d_sae = {d_sae}: {reason}") from error
    if type(sae.activation_fn) is SlowBatchTopK:
        sae.activation_fn = BatchTopK(sae.activation_fn.k)  # bitwise equal, and several times faster on CPU
    return sae


def load(
    path: str | Path,
    device: str = "cpu",
    converter: PretrainedSaeDiskLoader | None = None,
    ignored: Collection[str] = (),
) -> SAE[Any]:
    """Load a saved SAE in inference form.

    Args:
        path: Folder in SAELens' layout, or in the converter's.
        device: Device of the weights.
        converter: Reads a folder in another layout, as SAELens' disk loaders do.
        ignored: Normalisations of activations that the caller folds into the weights.

    Raises:
        UsageError: The folder does not exist, holds no config, or its config or weights cannot be used.
    """
    from sae_lens import SAE
    from safetensors import SafetensorError

    import_variants()
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no folder {str(folder)!r}: give a variant's name, a folder with {CONFIG}, or a Hub id")
    for file in (CONFIG, WEIGHTS) if converter is None else ():
        if not (folder / file).is_file():
            raise UsageError(f"{folder} is not a saved SAE: it has no {file}")
        refuse_pointer(folder / file)

    def read(path: str | Path, device: str, cfg_overrides: Any = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if converter is None:
            return _read_saelens(folder, device, ignored)
        cfg, weights = converter(path, device, cfg_overrides)
        check_config(cfg, ignored)
        return cfg, weights

    failed = f"cannot load the SAE in {folder}"
    try:
        sae = SAE.load_from_disk(folder, device=device, converter=read)
    except UsageError as error:
        raise error if str(folder) in str(error) else UsageError(f"{failed}: {error}") from error
    except SafetensorError as error:
        mend = "copy it again or, if it was trained here, delete the folder and train again"
        raise UsageError(f"{failed}: {WEIGHTS} is damaged: {describe_error(error)}; {mend}") from error
    except Exception as error:  # the weights may be anybody's, and each reader has errors of its own
        raise UsageError(f"{failed}: {describe_error(error)}") from error
    if sae.cfg.reshape_activations == "hook_z":
        sae.turn_off_forward_pass_hook_z_reshaping()  # heads come flattened: [..., n_heads * d_head]
    return sae


def _read_saelens(folder: Path, device: str, ignored: Collection[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the checked config and the weights of a folder in SAELens' layout."""
    from sae_lens.loading.pretrained_sae_loaders import read_sae_components_from_disk
    from safetensors import safe_open

    cfg = read_config(folder)
    check_config(cfg, ignored)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        if cfg.get("finetuning_scaling_factor") and "scaling_factor" not in file.keys():  # noqa: SIM118
            raise UsageError(f"finetuning_scaling_factor is true, but {WEIGHTS} has no tensor scaling_factor")
    return read_sae_components_from_disk({**cfg, "device": device}, folder / WEIGHTS, device)


def latent_groups(sae: SAE[Any]) -> dict[str, slice]:
    """Return the groups of latents that training distinguished, such as slow and fast; empty if there are none.

    A trained SAE is often a stock SAELens class; its metadata records how it was trained.
    """
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    metadata = sae.cfg.metadata
    if metadata.training_architecture not in SAE_TRAINING_CLASS_REGISTRY:
        return {}
    config_class = config_hooks(SAE_TRAINING_CLASS_REGISTRY[metadata.training_architecture][1])
    return config_class.latent_groups(sae.cfg.d_sae, metadata.training_architecture_details or {})
