"""Labelled documents as activations of a language model, kept on disk, and the latents that an SAE has in each.

Shapes: N tokens of all documents of a class, D = d_in, d documents, S latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval_runners.data.heldout import special_mask
from eval_runners.data.labelled import dataset_version, is_local_dataset, split_dataset
from eval_runners.store.cache import cached_folder
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import activation_key, hook_activations
from sae_variants.language_model.target import Target

OPTION = "--{}-documents"
AT_ONCE = 1024
"""Tokens that are encoded at once."""
ACTIVATIONS = "activations.safetensors"

Means = dict[str, Tensor]
"""Class -> latents [d, S], mean over a document's own tokens."""


def document_versions(evaluation: str, names: Iterable[str], config: Any) -> dict[str, str]:
    """The versions of the documents of these datasets. UsageError for one that is not to be had here."""
    found = {}
    for name in names:
        if not is_local_dataset(name):
            raise UsageError(
                f"{evaluation} reads labelled text of this package only, such as sandbox/ag_news, not {name}"
            )
        found[name] = dataset_version(name, config.train_documents, config.test_documents, config.seed, OPTION)
    return found


class DocumentActivations:
    """The documents of one dataset at a target's hook; half of `train_documents`, `test_documents` of each class."""

    def __init__(self, target: Target, model: Any, name: str, config: Any, device: str) -> None:
        from safetensors.torch import load_file

        split = split_dataset(name, config.train_documents, config.test_documents, config.seed, OPTION)
        self.labels = list(split[0])

        def make(folder: Path) -> None:
            from safetensors.torch import save_file

            found = {}
            for part, classes in enumerate(split):
                for number, label in enumerate(self.labels):
                    x_ND, lengths_d = _read(target, model, classes[label], config.context_size)
                    found |= {f"{part}.{number}.x": x_ND, f"{part}.{number}.lengths": lengths_d}
            save_file(found, folder / ACTIVATIONS)

        key = {
            **activation_key(target, model, device, "transformer-lens"),
            "documents": dataset_version(name, config.train_documents, config.test_documents, config.seed, OPTION),
            "context_size": config.context_size,
            "of": name,
        }
        self.folder = cached_folder(key, make)
        self._found = load_file(self.folder / ACTIVATIONS)

    def means(self, encode: Callable[[Tensor], Tensor], device: Any = "cpu") -> tuple[Means, Means]:
        """Of training and of test documents."""
        parts: list[Means] = []
        for part in (0, 1):
            parts.append({})
            for number, label in enumerate(self.labels):
                x_ND, lengths_d = self._found[f"{part}.{number}.x"], self._found[f"{part}.{number}.lengths"]
                parts[-1][label] = _means(encode, x_ND, lengths_d, device)
        return parts[0], parts[1]


def one_against_others(classes: Means, label: str, seed: int) -> tuple[Tensor, Tensor]:
    """A class and as many documents of the others: latents [2 d, S], and 1 or 0 of each."""
    own = classes[label]
    others = torch.cat([means for other, means in classes.items() if other != label])
    chosen = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: len(own)]
    return torch.cat([own, others[chosen]]), torch.cat([torch.ones(len(own)), torch.zeros(len(chosen))])


def _read(target: Target, model: Any, texts: list[str], context_size: int) -> tuple[Tensor, Tensor]:
    """Activations [N, D] of the documents' own tokens, one after the other, and how many each has."""
    at_hook = hook_activations(model, target.hook_name)
    rows, lengths = [], []
    for start in range(0, len(texts), 32):
        ids = model.tokenizer(
            texts[start : start + 32], padding="longest", truncation=True, max_length=context_size, return_tensors="pt"
        )["input_ids"]
        own = ~special_mask(ids, model)
        with torch.no_grad():
            rows.append(at_hook(ids).cpu()[own])
        lengths.append(own.sum(1))
    return torch.cat(rows), torch.cat(lengths)


@torch.no_grad()
def _means(encode: Callable[[Tensor], Tensor], x_ND: Tensor, lengths_d: Tensor, device: Any) -> Tensor:
    document_N = torch.arange(len(lengths_d)).repeat_interleave(lengths_d)
    sums: Tensor | None = None
    for x, document in zip(x_ND.split(AT_ONCE), document_N.split(AT_ONCE), strict=True):
        latents = encode(x.to(device)).float().cpu()
        if sums is None:
            sums = torch.zeros(len(lengths_d), latents.shape[1])
        sums.index_add_(0, document, latents)
    assert sums is not None, "documents without a token"
    return sums / lengths_d.clamp(min=1)[:, None]
