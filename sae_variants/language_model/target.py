"""A target: a language model, a place in it, and text. One file in `targets/` each, or three options of a command."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_variants.common import hashing as _hash
from sae_variants.common.errors import UsageError, one_of
from sae_variants.language_model.load import SANDBOX, hub_errors, name_folder
from sae_variants.sandbox.corpus import CORPUS_VERSION, content_key, split_of

FOLDER = Path(__file__).parents[1] / "targets"
DEFAULT = SANDBOX
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")


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
        return f"local-{_hash.of_files(text_files(Path(self.dataset)))}"

    @property
    def text_version(self) -> str | None:
        """Changes when the sandbox's documents do. Local text is named by its content, a Hub dataset is not."""
        if self.dataset != SANDBOX:
            return None
        return f"sae-probes {version('sae-probes')}, {CORPUS_VERSION}"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Target:
    """The target of that name. UsageError with the near names if there is none."""
    one_of("target", name, names())
    with (FOLDER / f"{name}.toml").open("rb") as file:
        return Target(name=name, **tomllib.load(file))


def local(model: str, hook_name: str, dataset: str) -> Target:
    """A target made of a local model folder and local text, with the sandbox's settings."""
    path = Path(dataset)
    text_files(path)
    name = name_folder(Path(model))
    settings = load(SANDBOX)
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


def choose(target: str, model: str | None, hook_name: str | None, dataset: str | None) -> Target:
    """The target that a command's options name."""
    if model is None and hook_name is None and dataset is None:
        return load(target)
    if model is None or hook_name is None or dataset is None:
        raise UsageError("--model, --hook-name and --dataset are given together, instead of --target")
    return local(model, hook_name, dataset)


def text_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"no text at {str(path)!r}: give a {', '.join(TEXT_SUFFIXES)} file or a folder of them")
    files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES) if path.is_dir() else [path]
    if not files or any(p.suffix not in TEXT_SUFFIXES for p in files):
        raise UsageError(f"no {', '.join(TEXT_SUFFIXES)} file at {path}")
    return files


def read_texts(path: Path) -> list[str]:
    """The documents of one file: paragraphs of a .txt (blank lines part them), rows of column `text` otherwise."""
    import pandas as pd

    try:
        if path.suffix == ".txt":
            texts = path.read_text().split("\n\n")
        else:
            frame = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_parquet(path)
            if "text" not in frame:
                raise UsageError(f"{path} has no column 'text', only {', '.join(map(str, frame.columns)) or 'none'}")
            texts = frame["text"].dropna().astype(str).tolist()
    except UsageError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    return [text for text in texts if text.strip()]


@cache
def local_texts(dataset: str, split: str) -> list[str]:
    """Documents of one split of the sandbox's or a user's text; the split is by a hash of each document."""
    if dataset == SANDBOX:
        from sae_variants.sandbox import corpus

        return [document.text for document in corpus.documents(split)]
    texts = dict.fromkeys(text for path in text_files(Path(dataset)) for text in read_texts(path))
    if not texts:
        raise UsageError(f"{dataset} holds no text")
    found = [text for text in texts if split_of(content_key(text)) == split]
    if not found:
        raise UsageError(
            f"{dataset} has {len(texts)} documents, none of which falls into the {split} split: give more documents "
            "(in a .txt file, blank lines part them)"
        )
    return found


def text_dataset(target: Target, split: str) -> Any:
    """The text as a `datasets` dataset with a column `text`, for SAELens' and SAEBench's own stores."""
    from datasets import Dataset, load_dataset

    if target.is_local:
        return Dataset.from_dict({"text": local_texts(target.dataset, split)}).to_iterable_dataset()
    name = target.train_dataset if split == "train" and target.train_dataset else target.dataset
    with hub_errors(f"the dataset {name}"):
        return load_dataset(name, split="train", streaming=True)


def contexts(target: Target, model: Any, context_size: int, split: str = "train") -> Iterator[Any]:
    """One pass over the text in contexts [T] of token ids, cut as SAELens does: BOS first, BOS between documents."""
    import itertools

    import torch
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    tokenizer = model.tokenizer

    def tokenised() -> Iterator[torch.Tensor]:
        texts = (row["text"] for row in text_dataset(target, split))
        while group := list(itertools.islice(texts, 256)):
            for ids in tokenizer(group, add_special_tokens=False)["input_ids"]:
                if ids:
                    yield torch.tensor(ids)

    return concat_and_batch_sequences(
        tokenised(),
        context_size,
        begin_batch_token_id=tokenizer.bos_token_id,
        sequence_separator_token_id=tokenizer.bos_token_id,
    )
