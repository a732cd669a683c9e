"""Labelled documents as activations of a language model, kept on disk, and the latents of an SAE on each.

Shapes: N tokens of all documents of a class, n tokens of a document, D = d_in, d documents, S latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from eval_runners.data.heldout import special_mask
from eval_runners.data.labelled import dataset_version, is_local_dataset, split_dataset
from eval_runners.store.cache import cached_folder
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import activation_key, hook_activations
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

OPTION = "--{}-documents"
"""Spelling, in errors, of the options that set how many documents a side of a split has."""
AT_ONCE = 1024
"""Tokens encoded at once."""
DOCUMENTS_AT_ONCE = 32
"""Documents in a batch of the language model."""
ACTIVATIONS = "activations.safetensors"

Encode = Callable[[Tensor], Tensor]
"""Function from activations [n, D] to latents [n, S]."""
Means = dict[str, Tensor]
"""Class -> latents [d, S], mean over a document's tokens, special tokens excluded."""


class DocumentSettings(Protocol):
    """Settings that decide which documents are read, and how much of each."""

    @property
    def train_documents(self) -> int:
        """Training documents of a binary task, half of them of the class."""
        ...

    @property
    def test_documents(self) -> int:
        """Test documents of a binary task, half of them of the class."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the split."""
        ...


class ReadSettings(DocumentSettings, Protocol):
    """Settings that also decide how much of each document is read."""

    @property
    def context_size(self) -> int:
        """Largest number of tokens read of a document."""
        ...


def document_versions(evaluation: str, names: Iterable[str], settings: DocumentSettings) -> dict[str, str]:
    """Hash the documents of datasets, by name.

    Raises:
        UsageError: the documents of a dataset are not part of this package.
    """
    versions = {}
    for name in names:
        if not is_local_dataset(name):
            raise UsageError(
                f"{evaluation} reads labelled text of this package only, such as sandbox/ag_news, not {name}"
            )
        versions[name] = _version(name, settings)
    return versions


class DocumentActivations:
    """The documents of one dataset at a target's hook, half of each size from every class."""

    def __init__(
        self, target: Target, model: HookedTransformer, name: str, settings: ReadSettings, device: str
    ) -> None:
        """Compute the activations, or load them from the cache.

        Args:
            target: names the hook.
            model: the target's language model.
            name: dataset, one of those that `document_versions` accepts.
            settings: which documents are read, and how much of each.
            device: device of the model.
        """
        from safetensors.torch import load_file, save_file

        split = split_dataset(name, settings.train_documents, settings.test_documents, settings.seed, OPTION)
        self.labels = list(split[0])

        def make(folder: Path) -> None:
            tensors = {}
            for part, classes in enumerate(split):
                for number, label in enumerate(self.labels):
                    x_ND, lengths_d = _read_activations(target, model, classes[label], settings.context_size)
                    tensors |= {f"{part}.{number}.x": x_ND, f"{part}.{number}.lengths": lengths_d}
            save_file(tensors, folder / ACTIVATIONS)

        key = {
            **activation_key(target, model, device, "transformer-lens"),
            "documents": _version(name, settings),
            "context_size": settings.context_size,
            "of": name,
        }
        self.folder = cached_folder(key, make)
        self._tensors = load_file(self.folder / ACTIVATIONS)

    def means(self, encode: Encode, device: str | torch.device = "cpu") -> tuple[Means, Means]:
        """Average latents over the tokens of each document.

        Args:
            encode: from activations [n, D] to latents [n, S].
            device: device that `encode` reads from.

        Returns:
            Means of the training documents and of the test documents.
        """
        train, test = (
            {
                label: document_means(encode, *self._class_tensors(part, number), device)
                for number, label in enumerate(self.labels)
            }
            for part in (0, 1)
        )
        return train, test

    def documents(self, part: int) -> list[Tensor]:
        """Activations [n, D] of each document, class by class; part 0 is training, 1 is test."""
        documents = []
        for number in range(len(self.labels)):
            x_ND, lengths_d = self._class_tensors(part, number)
            documents += x_ND.split(lengths_d.tolist())
        return documents

    def _class_tensors(self, part: int, number: int) -> tuple[Tensor, Tensor]:
        """Activations [N, D] of a class and the lengths [d] of its documents."""
        return self._tensors[f"{part}.{number}.x"], self._tensors[f"{part}.{number}.lengths"]


def one_against_others(classes: Means, label: str, seed: int) -> tuple[Tensor, Tensor]:
    """Balance a class with as many documents of the other classes, drawn at random.

    Returns:
        Latents [2 d, S]; 1 for documents of the class and 0 for the others.
    """
    members = classes[label]
    others = torch.cat([means for other, means in classes.items() if other != label])
    chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: len(members)]
    return torch.cat([members, others[chosen]]), torch.cat([torch.ones(len(members)), torch.zeros(len(chosen))])


@torch.no_grad()
def encode_rows(encode: Encode, x_ND: Tensor, device: str | torch.device) -> Iterator[Tensor]:
    """Encode activations in blocks of `AT_ONCE` tokens; yields latents [n, S] on the CPU."""
    for x_nD in x_ND.split(AT_ONCE):
        yield encode(x_nD.to(device)).float().cpu()


def document_means(encode: Encode, x_ND: Tensor, lengths_d: Tensor, device: str | torch.device) -> Tensor:
    """Average latents over the tokens of each document.

    Args:
        encode: from activations [n, D] to latents [n, S].
        x_ND: activations of the documents, one document after the other.
        lengths_d: tokens of each document.
        device: device that `encode` reads from.

    Returns:
        [d, S].
    """
    document_N = torch.arange(len(lengths_d)).repeat_interleave(lengths_d)
    sums_dS: Tensor | None = None
    for latents_nS, document_n in zip(encode_rows(encode, x_ND, device), document_N.split(AT_ONCE), strict=True):
        if sums_dS is None:
            sums_dS = torch.zeros(len(lengths_d), latents_nS.shape[1])
        sums_dS.index_add_(0, document_n, latents_nS)
    assert sums_dS is not None, "documents without a token"
    return sums_dS / lengths_d.clamp(min=1)[:, None]


def _version(name: str, settings: DocumentSettings) -> str:
    return dataset_version(name, settings.train_documents, settings.test_documents, settings.seed, OPTION)


def _read_activations(
    target: Target, model: HookedTransformer, texts: list[str], context_size: int
) -> tuple[Tensor, Tensor]:
    """Compute the activations [N, D] at the documents' tokens, special tokens excluded, and their lengths [d]."""
    tokenizer: Any = model.tokenizer
    at_hook = hook_activations(model, target.hook_name)
    rows, lengths = [], []
    for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
        ids_dT = tokenizer(
            texts[start : start + DOCUMENTS_AT_ONCE],
            padding="longest",
            truncation=True,
            max_length=context_size,
            return_tensors="pt",
        )["input_ids"]
        ordinary_dT = ~special_mask(ids_dT, model)
        with torch.no_grad():
            rows.append(at_hook(ids_dT).cpu()[ordinary_dT])
        lengths.append(ordinary_dT.sum(1))
    return torch.cat(rows), torch.cat(lengths)
