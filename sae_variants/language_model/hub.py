"""The Hugging Face Hub: which errors mean that it cannot be reached, and which revision of a model is cached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import _folders, model_id


def model_revision(name: str) -> str:
    """`model_id` with, for a model on the Hub, the commit that lies in the local cache: what has been loaded."""
    from huggingface_hub import try_to_load_from_cache
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if name in _folders:
        return model_id(name)
    config = try_to_load_from_cache(get_official_model_name(name), "config.json")
    return f"{name}@{Path(config).parent.name}" if isinstance(config, str) else name


def is_transport(error: BaseException) -> bool:
    """Whether an error is of the network, whichever library huggingface_hub speaks HTTP with."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """A model or text that cannot be had ends in one line, not in a stack of retries."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        unreachable = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
        # transformers and datasets report an unreachable Hub as an OSError without a number
        unnumbered = isinstance(error, OSError) and error.errno is None
        if not (is_transport(error) or unnumbered or isinstance(error, unreachable)):
            raise
        raise UsageError(f"cannot get {what} on the Hugging Face Hub ({type(error).__name__}): {_OFFLINE}") from error


HTTP_LIBRARIES = ("httpx", "httpx2", "requests")
_OFFLINE = "check the name and the network, or use --target sandbox or --model FOLDER, which need none"
