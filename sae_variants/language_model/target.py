"""A target: a language model, a place in it, and text. One file in `targets/` each, or three options of a command."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.language_model.folders import SANDBOX, register_model_folder
from sae_variants.language_model.text import text_files
from sae_variants.sandbox.corpus import CORPUS_VERSION

TARGETS_FOLDER = Path(__file__).parents[1] / "targets"
DEFAULT_TARGET = SANDBOX


@dataclass(frozen=True)
class Target:
    name: str
    title: str
    model_name: str
    hook_name: str
    dataset: str
    """`sandbox`, the name of a dataset on the Hub, or the path of a file or folder."""
    train_dataset: str | None = None
    """Another dataset on the Hub to train on, so that `dataset` stays held out. Local text is split instead."""
    dtype: str = "float32"
    train: dict[str, Any] = field(default_factory=dict)
    """Fields of `_plan.TrainSettings` and of variants' configs, for every SAE on this target."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same for single SAEs, by name."""
    l0: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Of SAEs without k, by name: the field that sets L0, and its value for some L0."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of evaluations on this target, by their name."""

    @property
    def is_local(self) -> bool:
        return self.dataset == SANDBOX or Path(self.dataset).exists()

    @property
    def text_id(self) -> str:
        """What results call the text: a name that holds no path of this machine."""
        if not self.is_local or self.dataset == SANDBOX:
            return self.dataset
        return f"local-{hash_files(text_files(Path(self.dataset)))}"

    @property
    def text_version(self) -> str | None:
        """Changes when the sandbox's documents do. Local text is named by its content, a Hub dataset is not."""
        if self.dataset != SANDBOX:
            return None
        return f"sae-probes {version('sae-probes')}, {CORPUS_VERSION}"


def target_names() -> list[str]:
    return sorted(path.stem for path in TARGETS_FOLDER.glob("*.toml"))


def load_target(name: str) -> Target:
    """The target of that name. UsageError with the near names if there is none."""
    check_name("target", name, target_names())
    with (TARGETS_FOLDER / f"{name}.toml").open("rb") as file:
        return Target(name=name, **tomllib.load(file))


def make_local_target(model: str, hook_name: str, dataset: str) -> Target:
    """A target made of a local model folder and local text, with the sandbox's settings."""
    path = Path(dataset)
    text_files(path)
    name = register_model_folder(Path(model))
    settings = load_target(SANDBOX)
    return Target(
        name=name,
        title=f"{Path(model).resolve().name} at {hook_name} on {path.name}",
        model_name=name,
        hook_name=hook_name,
        dataset=dataset,
        train=settings.train,
        variants=settings.variants,
        l0=settings.l0,
        evaluations=settings.evaluations,
    )


def choose_target(target: str, model: str | None, hook_name: str | None, dataset: str | None) -> Target:
    """The target that a command's options name."""
    if model is None and hook_name is None and dataset is None:
        return load_target(target)
    if model is None or hook_name is None or dataset is None:
        raise UsageError("--model, --hook-name and --dataset are given together, instead of --target")
    return make_local_target(model, hook_name, dataset)
