"""Targets: a language model, a hook in it and text, from a target file or from command-line options."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.language_model.documents import TEXT
from sae_variants.language_model.folders import SANDBOX
from sae_variants.language_model.hub import folder_name, register_model
from sae_variants.language_model.target_files import is_target_file, read_fields, resolve_dataset, target_files
from sae_variants.language_model.text import DEFAULT_SPLIT, check_texts, is_local_text, text_files
from sae_variants.sandbox.corpus import CORPUS_VERSION
from sae_variants.synthetic.config import SAMPLES_VERSION

DEFAULT_TARGET = SANDBOX
OF_COMMANDS = ("name", "eval_seed", "activations")
"""Fields that target files cannot set."""


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
    """`sandbox`, a dataset on the Hub such as `ORG/NAME:config@revision`, or the path of a file or folder."""
    train_dataset: str | None = None
    """Dataset to train on, so that all of `dataset` is held out; without it, one document in ten is held out."""
    dataset_split: str = DEFAULT_SPLIT
    """Split of the datasets on the Hub, and of folders saved by `datasets`."""
    text_column: str = TEXT
    """Column with the documents."""
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
    synthetic: dict[str, Any] | None = None
    """Config of a synthetic model with known features, in place of a language model, a hook and a text."""
    eval_seed: int = 0
    """Seed of the order of the held-out documents; 0 leaves them as they are. Not a field of target files."""
    activations: Path | None = field(default=None, compare=False)
    """Folder in which activations are kept; None for none. Not a field of target files."""

    @property
    def is_local(self) -> bool:
        """Whether the text is on this machine."""
        return self.synthetic is not None or is_local_text(self.dataset)

    @property
    def is_split(self) -> bool:
        """Whether a hash of each document decides if it is held out."""
        return self.train_dataset is None

    @property
    def text_id(self) -> str:
        """Name of the text in results; it contains no path of this machine."""
        return self._text_id(self.dataset)

    @property
    def train_text_id(self) -> str:
        """Name of the text that SAEs are trained on."""
        return self._text_id(self.train_dataset or self.dataset)

    def _text_id(self, dataset: str) -> str:
        if dataset == SANDBOX or self.synthetic:
            return dataset
        name = (
            f"local-{hash_files(text_files(Path(dataset), self.dataset_split))}" if is_local_text(dataset) else dataset
        )
        split = f",split={self.dataset_split}" if self.dataset_split != DEFAULT_SPLIT else ""
        return name + split + (f",column={self.text_column}" if self.text_column != TEXT else "")

    @property
    def text_version(self) -> str | None:
        """Version of the sandbox's documents, or of the samples of synthetic models; None for other text."""
        if self.synthetic:
            return SAMPLES_VERSION
        if self.dataset != SANDBOX:
            return None
        return f"sae-probes {version('sae-probes')}, {CORPUS_VERSION}"


@dataclass(frozen=True)
class TextOptions:
    """Command-line options that belong to --dataset."""

    train_dataset: str | None = None
    """Path, or name on the Hub, of the text to train on."""
    dataset_split: str | None = None
    """Split of the datasets."""
    text_column: str | None = None
    """Column with the documents."""


def target_names() -> list[str]:
    """Return the names of the targets of this package and of others."""
    return list(target_files())


@cache
def load_target(name: str) -> Target:
    """Return the target of that name or in that file; raise a UsageError with the nearest names if none exists."""
    known = target_files()
    if not is_target_file(name):
        path = known[check_name("target", name, known)]
    elif not (path := Path(name)).is_file():
        raise UsageError(f"no target file {name!r}{': it is a folder' if path.is_dir() else ''}")
    elif path.stem in known and path.resolve() != known[path.stem].resolve():
        raise UsageError(f"{name} has the name of the target {path.stem!r}: give the file another name")
    types = {field: hint for field, hint in get_type_hints(Target).items() if field not in OF_COMMANDS}
    stem = path.stem if is_target_file(name) else name
    return Target(**{"name": stem, "title": stem, **read_fields(path, types)})


def make_local_target(model: str, hook_name: str, dataset: str, text: TextOptions | None = None) -> Target:
    """Return a target of a local model folder and a text, with the recipe of the sandbox.

    Args:
        model: Hugging Face model folder, or a model's name on the Hub.
        hook_name: Hook whose activations are reconstructed.
        dataset: Path of a file or folder, or name on the Hub.
        text: Further options of the text.
    """
    text = text or TextOptions()
    split = text.dataset_split or DEFAULT_SPLIT
    resolved = resolve_dataset(dataset, split=split)
    train_dataset = resolve_dataset(text.train_dataset, split=split) if text.train_dataset else None
    check_texts(resolved, train_dataset, split, text.text_column or TEXT)
    model_name = register_model(model)
    settings = load_target(SANDBOX)
    return Target(
        name=folder_name(model_name),
        title=f"{Path(model).resolve().name} at {hook_name} on {Path(dataset).name}",
        model_name=model_name,
        hook_name=hook_name,
        dataset=resolved,
        train_dataset=train_dataset,
        dataset_split=split,
        text_column=text.text_column or TEXT,
        train=settings.train,
        variants=settings.variants,
        l0=settings.l0,
        evaluations=settings.evaluations,
    )


def choose_target(
    target: str, model: str | None, hook_name: str | None, dataset: str | None, text: TextOptions | None = None
) -> Target:
    """Return the target that the options --target, or --model, --hook-name and --dataset, choose."""
    if model is None and hook_name is None and dataset is None:
        if text is not None and text != TextOptions():
            raise UsageError("--train-dataset, --dataset-split and --text-column belong to --dataset: give it too")
        return load_target(target)
    if model is None or hook_name is None or dataset is None:
        raise UsageError("--model, --hook-name and --dataset must be given together, instead of --target")
    return make_local_target(model, hook_name, dataset, text)
