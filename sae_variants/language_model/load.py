"""Loading of a language model."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.memory import reuse_freed_memory
from sae_variants.language_model.conversion import load_hf_model
from sae_variants.language_model.folders import is_local_model, model_folder
from sae_variants.language_model.hub import find_model, model_errors, official_name

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(name: str, device: str, dtype: str) -> HookedTransformer:
    """Load a language model without weight processing, as SAEBench does.

    Args:
        name: Name on the Hub, or a registered name of a local folder.
        device: Device of the weights.
        dtype: Data type of the weights, such as `float32`.

    Raises:
        UsageError: The Hub is unreachable, or TransformerLens cannot load the model rightly.
    """
    from sae_lens.util import str_to_dtype
    from transformer_lens import HookedTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if device == "cpu":
        reuse_freed_memory()
    if not is_local_model(name):
        name = find_model(name)
    try:
        with _hub_errors_of(name), contextlib.redirect_stdout(io.StringIO()):
            return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=str_to_dtype(dtype))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"TransformerLens cannot load the model {name}: {describe_error(error)}") from error


def load_transformers_model(name: str, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer as `transformers` has them, for code that takes no TransformerLens model.

    Args:
        name: Name on the Hub, or a registered name of a local folder.
        device: Device of the weights.
        dtype: Data type of the weights, such as `float32`.

    Raises:
        UsageError: The Hub is unreachable, or `transformers` cannot load the model.
    """
    from sae_lens.util import str_to_dtype
    from transformers import AutoTokenizer

    if not is_local_model(name):
        name = find_model(name)
    source = model_folder(name) or official_name(name)
    with _hub_errors_of(name):
        model = load_hf_model(source, str_to_dtype(dtype))
        return model.to(device), AutoTokenizer.from_pretrained(source, trust_remote_code=False)  # pyright: ignore[reportArgumentType]


def _hub_errors_of(name: str) -> contextlib.AbstractContextManager[None]:
    """Return the context that turns errors of the Hub into a UsageError, for a model that is there."""
    return contextlib.nullcontext() if is_local_model(name) else model_errors(f"the model {name}")
