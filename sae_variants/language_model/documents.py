"""Documents from rows: text, conversations and token ids, and the documents that are held out."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.language_model.rows import Row, describe, list_columns
from sae_variants.sandbox.corpus import content_key, split_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT, CHATS, TOKENS = "text", ("messages", "conversations"), ("input_ids", "tokens")
TOOL_CALLS = "tool_calls"
"""Key of a turn that calls tools, often without content; chat templates write the calls."""
SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
"""Role of a speaker, where conversations have `from` and `value` instead of `role` and `content`."""


@dataclass(frozen=True)
class Chat:
    """A conversation, which becomes text by the tokenizer's chat template."""

    turns: str
    """JSON of the turns with `role`, `content` and, where a turn has them, `tool_calls`."""

    def render(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the conversation as text, without the BOS that contexts begin with anyway.

        Raises:
            UsageError: The tokenizer has no chat template, or it refuses the conversation.
        """
        if not tokenizer.chat_template:
            raise UsageError(
                "the text holds conversations, and the model's tokenizer has no chat template: choose a column of text "
                "by --text-column, or a model that was trained on conversations"
            )
        turns = json.loads(self.turns)
        if TOOL_CALLS not in str(tokenizer.chat_template) and any(TOOL_CALLS in turn for turn in turns):
            raise UsageError(
                f"the conversation {self.turns[:80]}... has tool_calls, which the chat template of the model's "
                "tokenizer leaves out: remove such conversations"
            )
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:
            raise UsageError(
                f"the chat template refuses the conversation {self.turns[:80]}...: {describe_error(error)}"
            ) from error
        return str(text).removeprefix(str(tokenizer.bos_token or ""))


@dataclass(frozen=True)
class TokenIds:
    """Token ids of a context, as SAELens' pretokenize writes them."""

    data: bytes
    """The ids as C ints."""
    where: str = field(default="", compare=False)
    """File and row, for error messages."""

    @property
    def ids(self) -> list[int]:
        """The ids."""
        return array("i", self.data).tolist()

    @property
    def n_ids(self) -> int:
        """Number of ids."""
        return len(self.data) // array("i").itemsize

    @property
    def largest_id(self) -> int:
        """The largest id."""
        import numpy as np

        return int(np.frombuffer(self.data, "i").max())


Document = str | Chat | TokenIds


def text_columns(column: str) -> tuple[str, ...]:
    """Return the columns that may hold the documents, if `column` is the requested one."""
    return (column, *CHATS, *TOKENS) if column == TEXT else (column,)


def read_documents(what: str, rows: Iterable[tuple[str, Row]], column: str) -> Iterator[Document | None]:
    """Turn rows into documents.

    Args:
        what: Name of the file or dataset, for error messages.
        rows: Positions and rows.
        column: Requested column. If it is `text` and rows have none, conversations and token ids are read.

    Yields:
        The document of each row, or None for a row whose value is null.

    Raises:
        UsageError: No row has the column, or a value is neither text nor, in its columns, conversation or token ids.
    """
    seen: Row = {}
    has_column = False
    for position, row in rows:
        name = next((name for name in text_columns(column) if name in row), None)
        seen.update(dict.fromkeys(row))
        if name is None:
            yield None
            continue
        has_column = True
        yield _document(f"{what}: {position}", name, row[name], name == column)
    if seen and not has_column:
        raise UsageError(f"{what} has no column {column!r}, only {list_columns(seen)}: choose one by --text-column")


def _document(where: str, name: str, value: Any, is_requested: bool) -> Document | None:
    if value is None or value != value:
        return None
    if isinstance(value, str) and (is_requested or name not in CHATS + TOKENS):
        return value if _is_unicode(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not isinstance(value, str) and hasattr(value, "tolist"):
        value = value.tolist()
    if name in CHATS and isinstance(value, list):
        return (
            Chat(json.dumps([_turn(where, name, turn) for turn in value], ensure_ascii=False, default=str))
            if value
            else None
        )
    if name in TOKENS and isinstance(value, list):
        if any(type(token) is not int or not 0 <= token < 2**31 for token in value):
            raise UsageError(f"{where}: column {name} must hold a list of token ids, not {describe(value)}")
        return TokenIds(array("i", value).tobytes(), where) if value else None
    kind = "a list of turns" if name in CHATS else "a list of token ids" if name in TOKENS else "text"
    hint = "; conversations are read from a column messages or conversations" if isinstance(value, list) else ""
    if isinstance(value, str):
        hint = f"; --text-column {name} reads it as text"
    raise UsageError(f"{where}: column {name} must hold {kind}, not {describe(value)}{hint}")


def _turn(where: str, name: str, turn: Any) -> dict[str, Any]:
    if isinstance(turn, dict):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(str(part["text"] or "") for part in content)
        if isinstance(role, str) and (content is None or isinstance(content, str)):
            calls = {TOOL_CALLS: turn[TOOL_CALLS]} if turn.get(TOOL_CALLS) else {}
            return {"role": SPEAKERS.get(role, role), "content": content or "", **calls}
    raise UsageError(f"{where}: column {name} must hold turns with role and content, not {describe(turn)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
        return False
    return True


def is_empty(document: Document | None) -> bool:
    """Return whether a row holds no document, or only white space."""
    return document is None or (isinstance(document, str) and not document.strip())


def part_of(document: Document) -> str:
    """Return `train` or `heldout`, which follows from a hash of the document alone."""
    content = document if isinstance(document, str) else getattr(document, "turns", None)
    return split_of(content_key(content if content is not None else " ".join(map(str, document.ids))))  # type: ignore[union-attr]


def report_skipped(what: str, n_empty: int, n_null: int) -> None:
    """Print, on stderr, how many rows hold no document."""
    if n_empty or n_null:
        print(f"note: {what}: {n_empty} empty and {n_null} null rows are skipped", file=sys.stderr)
