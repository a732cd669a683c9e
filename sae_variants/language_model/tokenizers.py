"""The tokenizer of a model folder, checked against the model's embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer and check that it fits the model.

    Args:
        folder: Model folder.
        vocab_size: Rows of the model's embedding.

    Raises:
        UsageError: It cannot be loaded, it has neither BOS nor EOS, or its ids exceed the embedding.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        vocabulary = _own_vocabulary(tokenizer, folder)
    except Exception as error:
        raise UsageError(f"cannot load the tokenizer of {folder}: {describe_error(error)}") from error
    if not {"bos", "eos"} & _special_tokens(tokenizer, vocab_size).keys():
        raise UsageError(
            f"the tokenizer of {folder} has neither a BOS nor an EOS token, and every context begins with one: name "
            'one of its tokens as "bos_token" in tokenizer_config.json'
        )
    media = {getattr(tokenizer, f"{kind}_token_id", None) for kind in ("image", "audio", "video")}
    beyond = {token: index for token, index in vocabulary.items() if index >= vocab_size and index not in media}
    if beyond:
        token = max(beyond, key=lambda name: beyond[name])
        raise UsageError(
            f"the tokenizer of {folder} does not fit the model: {token!r} has the id {beyond[token]}, but the "
            f"embedding has {vocab_size} rows (model.resize_token_embeddings, or the model's own tokenizer)"
        )
    return tokenizer


def _own_vocabulary(tokenizer: Any, folder: Path) -> dict[str, int]:
    """Return the vocabulary of a tokenizer's file, without tokens that its class in transformers adds by default."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True) if file.is_file() else tokenizer.get_vocab()


def fill_special_tokens(tokenizer: Any, vocab_size: int) -> None:
    """Give a tokenizer the BOS, EOS and padding tokens that it lacks.

    BOS stands in for a missing EOS, and the reverse; EOS for a missing padding token. TransformerLens names tokens that
    the vocabulary may lack, and classes of transformers some that the embedding lacks.

    Args:
        tokenizer: The tokenizer to complete.
        vocab_size: Rows of the model's embedding.
    """
    named = _special_tokens(tokenizer, vocab_size)
    either = named.get("bos") or named.get("eos")
    tokenizer.bos_token = named.get("bos") or either
    tokenizer.eos_token = named.get("eos") or either
    tokenizer.pad_token = named.get("pad") or tokenizer.eos_token


def _special_tokens(tokenizer: Any, vocab_size: int) -> dict[str, str]:
    """Return those of BOS, EOS and padding token that the vocabulary and the embedding hold."""
    tokens = {kind: getattr(tokenizer, f"{kind}_token") for kind in ("bos", "eos", "pad")}
    vocabulary = tokenizer.get_vocab()
    return {kind: token for kind, token in tokens.items() if vocabulary.get(token, vocab_size) < vocab_size}
