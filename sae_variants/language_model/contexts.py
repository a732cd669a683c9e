"""Text of a target as contexts of token ids, packed as SAELens packs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sae_variants.language_model.hub import hub_errors
from sae_variants.language_model.target import Target
from sae_variants.language_model.text import local_texts

if TYPE_CHECKING:
    import torch
    from datasets import IterableDataset
    from transformer_lens import HookedTransformer


def heldout_text_name(target: Target) -> str:
    """Return the name that results give to the text that an evaluator reads."""
    return f"{target.text_id}/heldout" if target.is_local else target.dataset


def text_dataset(target: Target, split: str) -> IterableDataset:
    """Return the text of a split as a dataset with a column `text`.

    Args:
        target: The target whose text is read.
        split: `train` or `heldout`.
    """
    from datasets import Dataset, load_dataset

    if target.is_local:
        return Dataset.from_dict({"text": local_texts(target.dataset, split)}).to_iterable_dataset()
    name = target.train_dataset if split == "train" and target.train_dataset else target.dataset
    with hub_errors(f"the dataset {name}"):
        dataset: Any = load_dataset(name, split="train", streaming=True)
    return dataset


def read_contexts(
    target: Target, model: HookedTransformer, context_size: int, split: str = "train"
) -> Iterator[torch.Tensor]:
    """Read the text once in contexts, cut as SAELens does: BOS first, and BOS between documents.

    Args:
        target: The target whose text is read.
        model: The language model with its tokenizer.
        context_size: Tokens T in a context, BOS included.
        split: `train` or `heldout`.

    Yields:
        Contexts [T] of token ids.
    """
    import itertools

    import torch
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    tokenizer: Any = model.tokenizer

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
