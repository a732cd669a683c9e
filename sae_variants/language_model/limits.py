"""Limits of a language model, read from its config and its tokenizer without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.language_model.folders import model_folder
from sae_variants.language_model.hub import official_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelLimits:
    """Limits of a language model; None where they are unknown until it is loaded."""

    n_ctx: int | None
    """Positions of a context."""
    d_vocab: int | None
    """Token ids that the model knows."""
    tokenizer: PreTrainedTokenizerBase | None
    """The tokenizer."""


def model_limits(name: str) -> ModelLimits:
    """Return the limits of a model, from its folder or from the Hub; where neither answers, they are unknown.

    Args:
        name: Name on the Hub, or a registered name of a local folder.
    """
    try:
        return _read_limits(model_folder(name) or official_name(name))
    except Exception:  # what is wrong with it, loading the model says in a line
        return ModelLimits(None, None, None)


@cache
def _read_limits(source: Path | str) -> ModelLimits:
    from transformers import AutoConfig, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    sizes = (getattr(config, field, None) for field in ("max_position_embeddings", "n_positions", "n_ctx"))
    return ModelLimits(next((size for size in sizes if isinstance(size, int)), None), config.vocab_size, tokenizer)
