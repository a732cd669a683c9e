"""Targets: a language model, a hook in it and text, from a file in `targets/` or from three command-line options."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.language_model.folders import SANDBOX
from sae_variants.language_model.hub import folder_name, register_model
from sae_variants.language_model.text import text_files
from sae_variants.sandbox.corpus import CORPUS_VERSION

TARGETS_FOLDER = Path(__file__).parents[1] / "targets"
DEFAULT_TARGET = SANDBOX


@dataclass(frozen=True)
class Target:
    """Language model, hook and text, with the recipe for SAEs on them."""

    name: str
    """Name of the file in `targets/`, or a name derived from a model folder."""
    title: str
    """Heading in tables."""
    model_name: str
    """Name of the language model on the Hub, or the registered name of a folder."""
    hook_name: str
    """Hook whose activations are reconstructed, such as `blocks.3.hook_resid_post`."""
    dataset: str
    """`sandbox`, the name of a dataset on the Hub, or the path of a file or folder."""
    train_dataset: str | None = None
    """Dataset on the Hub to train on, so that `dataset` stays held out; local text is split instead."""
    dtype: str = "float32"
    """Data type of the language model."""
    train: dict[str, Any] = field(default_factory=dict)
    """Recipe of every SAE on this target: training settings and config fields of variants."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Recipe of single variants by name, which takes precedence over `train`."""
    l0: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """For variants without k, by name: the field that determines L0, and its value for some L0."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of evaluators on this target, by name."""

    @property
    def is_local(self) -> bool:
        """Whether the text is on this machine."""
        return self.dataset == SANDBOX or Path(self.dataset).exists()

    @property
    def text_id(self) -> str:
        """Name of the text in results; it contains no path of this machine."""
        if not self.is_local or self.dataset == SANDBOX:
            return self.dataset
        return f"local-{hash_files(text_files(Path(self.dataset)))}"

    @property
    def text_version(self) -> str | None:
        """Version of the sandbox's documents; None for other text."""
        if self.dataset != SANDBOX:
            return None
        return f"sae-probes {version('sae-probes')}, {CORPUS_VERSION}"


def target_names() -> list[str]:
    """Return the names of the files in `targets/`."""
    return sorted(path.stem for path in TARGETS_FOLDER.glob("*.toml"))


def load_target(name: str) -> Target:
    """Return the target of that name; raise a UsageError with the nearest names if none exists."""
    check_name("target", name, target_names())
    with (TARGETS_FOLDER / f"{name}.toml").open("rb") as file:
        return Target(name=name, **tomllib.load(file))


def make_local_target(model: str, hook_name: str, dataset: str) -> Target:
    """Return a target of a model, a folder or a name on the Hub, and local text, with the recipe of the sandbox."""
    path = Path(dataset)
    text_files(path)
    model_name = register_model(model)
    settings = load_target(SANDBOX)
    return Target(
        name=folder_name(model_name),
        title=f"{Path(model).resolve().name} at {hook_name} on {path.name}",
        model_name=model_name,
        hook_name=hook_name,
        dataset=dataset,
        train=settings.train,
        variants=settings.variants,
        l0=settings.l0,
        evaluations=settings.evaluations,
    )


def choose_target(target: str, model: str | None, hook_name: str | None, dataset: str | None) -> Target:
    """Return the target that the options --target, or --model, --hook-name and --dataset, choose."""
    if model is None and hook_name is None and dataset is None:
        return load_target(target)
    if model is None or hook_name is None or dataset is None:
        raise UsageError("--model, --hook-name and --dataset must be given together, instead of --target")
    return make_local_target(model, hook_name, dataset)
