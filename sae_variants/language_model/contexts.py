"""Text of a target as contexts of token ids, packed as SAELens packs them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.documents import (
    Chat,
    Document,
    TokenIds,
    is_empty,
    part_of,
    read_documents,
)
from sae_variants.language_model.hub_text import stream_rows
from sae_variants.language_model.pretokenized import check_tokenizer
from sae_variants.language_model.target import Target
from sae_variants.language_model.text import is_local_text, local_documents, no_documents

if TYPE_CHECKING:
    import torch
    from datasets import IterableDataset
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

TOKENIZED_AT_ONCE = 256
"""Documents in a call of the tokenizer."""
SHUFFLED_TOGETHER = 2**14
"""Documents among which the next one of a shuffled text is drawn."""


def heldout_text_name(target: Target) -> str:
    """Return the name that results give to the text that an evaluator reads."""
    return f"{target.text_id}/heldout" if target.is_split else target.text_id


def _dataset_of(target: Target, split: str) -> str:
    """Return the dataset that a split, `train` or `heldout`, is read from."""
    return target.train_dataset if split == "train" and target.train_dataset else target.dataset


def target_documents(target: Target, split: str) -> Iterator[Document]:
    """Read the documents of a split once; held-out ones in the order that the target's `eval_seed` gives them.

    Args:
        target: The target whose text is read.
        split: `train` or `heldout`.
    """
    documents = _documents_in_order(target, split)
    yield from _shuffled(documents, target.eval_seed) if split == "heldout" and target.eval_seed else documents


def _shuffled(documents: Iterator[Document], seed: int) -> Iterator[Document]:
    """Yield documents in random order, each drawn from the next `SHUFFLED_TOGETHER`."""
    generator = random.Random(seed)
    waiting = list(itertools.islice(documents, SHUFFLED_TOGETHER))
    while waiting:
        chosen = generator.randrange(len(waiting))
        waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
        yield waiting.pop()
        waiting += itertools.islice(documents, 1)


def _documents_in_order(target: Target, split: str) -> Iterator[Document]:
    name = _dataset_of(target, split)
    part = split if target.is_split else None
    if is_local_text(name):
        yield from local_documents(name, part, target.dataset_split, target.text_column)
        return
    rows = stream_rows(name, target.dataset_split)
    n_documents, has_any = 0, False
    for document in read_documents(f"the dataset {name}", rows, target.text_column):
        if document is None or (part is not None and is_empty(document)):
            continue
        n_documents += 1
        if part is None or part_of(document) == part:
            has_any = True
            yield document
    if not has_any:
        raise no_documents(f"the dataset {name}", n_documents, part)


def _text_of(target: Target, document: Document, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return a document that is not tokenised yet as text."""
    if isinstance(document, TokenIds):
        raise UsageError(f"{document.where} holds token ids, but rows before it hold text: keep them in separate files")
    if isinstance(document, Chat):
        if tokenizer is None:
            raise UsageError(f"the conversations of {target.title} become text by a tokenizer")
        return document.render(tokenizer)
    return document


def text_dataset(target: Target, split: str, tokenizer: PreTrainedTokenizerBase | None = None) -> IterableDataset:
    """Return the text of a split as a dataset with a column `text`, or `tokens` if it is tokenised already.

    Args:
        target: The target whose text is read.
        split: `train` or `heldout`.
        tokenizer: Tokenizer whose chat template makes text of conversations.
    """
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable

    def rows() -> Any:
        for number, document in enumerate(target_documents(target, split)):
            is_tokenised = isinstance(document, TokenIds)
            yield number, {"tokens": document.ids} if is_tokenised else {"text": _text_of(target, document, tokenizer)}

    return IterableDataset(ExamplesIterable(rows, {}))


def read_contexts(
    target: Target, model: HookedTransformer, context_size: int, split: str = "train"
) -> Iterator[torch.Tensor]:
    """Read the text once in contexts, cut as SAELens does: BOS first, and BOS between documents.

    Text that is tokenised already has a context a row, which is used as it is.

    Args:
        target: The target whose text is read.
        model: The language model with its tokenizer.
        context_size: Tokens T in a context, BOS included.
        split: `train` or `heldout`.

    Yields:
        Contexts [T] of token ids.
    """
    yield from cut_contexts(target, model.tokenizer, model.cfg.d_vocab, context_size, split)


def cut_contexts(
    target: Target, tokenizer: Any, d_vocab: int, context_size: int, split: str = "train"
) -> Iterator[torch.Tensor]:
    """Read the text once in contexts, as `read_contexts` does, without the model.

    Args:
        target: The target whose text is read.
        tokenizer: Tokenizer of the language model.
        d_vocab: Token ids that the language model knows.
        context_size: Tokens T in a context, BOS included.
        split: `train` or `heldout`.

    Yields:
        Contexts [T] of token ids.
    """
    import torch
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    documents = target_documents(target, split)
    first = next(documents, None)
    if first is None:
        return
    documents = itertools.chain([first], documents)
    if isinstance(first, TokenIds):
        name = _dataset_of(target, split)
        check_tokenizer(name, tokenizer)
        if is_local_text(name):  # every row is checked before the first is used
            documents = iter([_check_tokens(document, d_vocab, context_size) for document in documents])
        for document in documents:
            yield torch.tensor(_check_tokens(document, d_vocab, context_size).ids[:context_size])
        return

    def tokenised() -> Iterator[torch.Tensor]:
        texts = (_text_of(target, document, tokenizer) for document in documents)
        while group := list(itertools.islice(texts, TOKENIZED_AT_ONCE)):
            for ids in tokenizer(group, add_special_tokens=False)["input_ids"]:
                if ids and max(ids) >= d_vocab:
                    token = tokenizer.convert_ids_to_tokens(max(ids))
                    raise UsageError(
                        f"the text of {target.title} has the token {token!r}, whose id {max(ids)} exceeds the "
                        f"{d_vocab} that the model knows: remove it from the text"
                    )
                if ids:
                    yield torch.tensor(ids)

    yield from concat_and_batch_sequences(
        tokenised(),
        context_size,
        begin_batch_token_id=tokenizer.bos_token_id,
        sequence_separator_token_id=tokenizer.bos_token_id,
    )


def _check_tokens(document: Document, d_vocab: int, context_size: int) -> TokenIds:
    """Return a row that is tokenised already, checked against the context size and the model."""
    if not isinstance(document, TokenIds):
        raise UsageError("the text holds token ids and, after them, text: keep them in separate files")
    if document.n_ids < context_size:
        raise UsageError(
            f"{document.where} is tokenised already, and has {document.n_ids} tokens: a context of {context_size} "
            "tokens needs rows of at least as many; choose a smaller --context-size"
        )
    if document.largest_id >= d_vocab:
        raise UsageError(
            f"{document.where} is tokenised already, and has the token {document.largest_id}, but the model knows "
            f"{d_vocab}: it is the text of another tokenizer"
        )
    return document
