"""A target's text as contexts of token ids, packed as SAELens packs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sae_variants.language_model.hub import hub_errors
from sae_variants.language_model.target import Target
from sae_variants.language_model.text import local_texts


def heldout_text_name(target: Target) -> str:
    """How results call the text that an evaluation reads."""
    return f"{target.text_id}/heldout" if target.is_local else target.dataset


def text_dataset(target: Target, split: str) -> Any:
    """The text as a `datasets` dataset with a column `text`, for SAELens' and SAEBench's own stores."""
    from datasets import Dataset, load_dataset

    if target.is_local:
        return Dataset.from_dict({"text": local_texts(target.dataset, split)}).to_iterable_dataset()
    name = target.train_dataset if split == "train" and target.train_dataset else target.dataset
    with hub_errors(f"the dataset {name}"):
        return load_dataset(name, split="train", streaming=True)


def read_contexts(target: Target, model: Any, context_size: int, split: str = "train") -> Iterator[Any]:
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
