"""Target files: where they are, the check of their fields, and the models and texts that they name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.values import check_type
from sae_variants.language_model.documents import TEXT
from sae_variants.language_model.folders import SANDBOX, is_local_model, register_model_folder
from sae_variants.language_model.hub import is_listed, register_model
from sae_variants.language_model.hub_text import is_hub_dataset, pin_dataset
from sae_variants.language_model.rows import suffix_of
from sae_variants.language_model.text import DEFAULT_SPLIT, check_texts, is_local_text, text_files
from sae_variants.synthetic.config import synthetic_id

TARGETS_FOLDER = Path(__file__).parents[1] / "targets"
GROUP = "sae_variants_targets"
"""Entry points of other packages: name -> `package:file.toml`, a file in the package's folder."""
SOURCE = ("model_name", "hook_name", "dataset")
"""Fields without which a target has no activations, unless it is synthetic."""
SYNTHETIC_HOOK = "activations"
"""Hook name of synthetic models, whose activations are all that they have."""
DTYPES = ("float32", "bfloat16", "float16", "float64")


def target_files() -> dict[str, Path]:
    """Return the target files by name: those in `targets/`, and those of other packages.

    Raises:
        UsageError: An entry point has a name that is taken, or names no file of its package.
    """
    files = {path.stem: path for path in TARGETS_FOLDER.glob("*.toml")}
    for entry in entry_points(group=GROUP):
        package, _, file = entry.value.partition(":")
        if entry.name in files:
            raise UsageError(f"{package} names {entry.name!r} in {GROUP}, which is {files[entry.name]} already")
        try:
            path = Path(str(resources.files(package.strip()) / file.strip()))
        except (ImportError, TypeError, ValueError) as error:
            raise UsageError(f"the target {entry.name} cannot be read: {entry.value}: {error}") from error
        if not file or not path.is_file():
            raise UsageError(f"the target {entry.name} has no file {entry.value}: write package:file.toml")
        files[entry.name] = path
    return dict(sorted(files.items()))


def is_target_file(target: str) -> bool:
    """Return whether a target is given by the path of its file."""
    return target.endswith(".toml") or "/" in target


def read_fields(path: Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a target file; paths in it are relative to its folder.

    Args:
        path: The file.
        types: Type of each known field.

    Raises:
        UsageError: The file cannot be read, or a field is unknown, missing, of another type or names nothing.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    for name in content:
        check_name(f"field of the target file {path}", name, types)
    is_synthetic = "synthetic" in content
    for name in SOURCE:
        if name not in content and not is_synthetic:
            raise UsageError(f"{path} has no field {name!r}: a target needs {', '.join(SOURCE)}, or synthetic")
        if name in content and is_synthetic:
            raise UsageError(f"{path} has both {name} and synthetic: a synthetic model stands in place of them")
    values = {name: check_type(f"{name} in {path}", value, types[name]) for name, value in content.items()}
    if values.get("dtype", DTYPES[0]) not in DTYPES:
        raise UsageError(f"dtype in {path} must be {', '.join(DTYPES)}, not {values['dtype']!r}")
    if is_synthetic:
        if not values["synthetic"]:
            raise UsageError(
                f"[synthetic] in {path} is empty: it needs num_features, hidden_dim and firing_probability"
            )
        model = f"{path.stem}-{synthetic_id(values['synthetic'])}"
        return {**values, "model_name": model, "hook_name": SYNTHETIC_HOOK, "dataset": model}
    if path.parent != TARGETS_FOLDER:
        values["model_name"] = resolve_model(values["model_name"], path.parent)
        split = values.get("dataset_split", DEFAULT_SPLIT)
        for name in ("dataset", "train_dataset"):
            if values.get(name):
                values[name] = resolve_dataset(values[name], path.parent, split)
        check_texts(values["dataset"], values.get("train_dataset"), split, values.get("text_column", TEXT))
    return values


def resolve_model(model: str, folder: Path) -> str:
    """Return the name that loads a model: that of a folder's content, else the name on the Hub.

    A model on the Hub that TransformerLens does not list is downloaded, so that its commit counts in keys.

    Args:
        model: Folder, or name on the Hub.
        folder: Folder that a relative path begins at.

    Raises:
        UsageError: There is no such model, or it cannot be downloaded.
    """
    if is_local_model(model):
        return model
    path = folder / Path(model).expanduser()
    if path.is_dir() or model.startswith((".", "/", "~")):
        return register_model_folder(path)
    return model if is_listed(model) else register_model(model)


def resolve_dataset(dataset: str, folder: Path = Path(), split: str = DEFAULT_SPLIT) -> str:
    """Return the path of local text, or the name of a dataset on the Hub with the commit of its revision.

    Args:
        dataset: `sandbox`, a path, or a name on the Hub. A path that exists takes precedence.
        folder: Folder that a relative path begins at.
        split: Split of a folder saved by `datasets`.

    Raises:
        UsageError: There is no such text.
    """
    if dataset == SANDBOX:
        return dataset
    path = folder / Path(dataset).expanduser()
    if is_local_text(str(path)) or suffix_of(path) or not is_hub_dataset(dataset):
        text_files(path, split)
        return str(path)
    return pin_dataset(dataset)
