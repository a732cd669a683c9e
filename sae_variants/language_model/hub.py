"""The Hugging Face Hub: errors that mean that it is unreachable, and the revision of a cached model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import is_local_model, model_id
from sae_variants.language_model.hub_status import refusal

HTTP_LIBRARIES = ("httpx", "httpx2", "requests")
_OFFLINE = "check the name and the network, or use --target sandbox or --model FOLDER, which need none"


def model_revision(name: str) -> str:
    """Return `model_id`; for a model on the Hub with the commit in the local cache, which is the one loaded."""
    from huggingface_hub import try_to_load_from_cache
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if is_local_model(name):
        return model_id(name)
    config = try_to_load_from_cache(get_official_model_name(name), "config.json")
    return f"{name}@{Path(config).parent.name}" if isinstance(config, str) else name


def is_transport(error: BaseException) -> bool:
    """Return whether an error comes from the network, whichever HTTP library huggingface_hub uses."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the Hub into a UsageError; `what` names the model or dataset that is requested."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if refused := refusal(what, error):
            raise refused from error
        unreachable = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
        # transformers and datasets report an unreachable Hub as an OSError without a number.
        unnumbered = isinstance(error, OSError) and error.errno is None
        if not (is_transport(error) or unnumbered or isinstance(error, unreachable)):
            raise
        raise UsageError(f"cannot get {what} on the Hugging Face Hub ({type(error).__name__}): {_OFFLINE}") from error
