"""Errors of the Hugging Face Hub and of the way to it, each in one line: what happened and what to do."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from sae_variants.common.errors import UsageError, describe_error

T = TypeVar("T")
READING = {
    401: "the Hub does not know the token, or the name is wrong: check the name and `hf auth login`",
    403: "access is refused: check the rights of your token",
    404: "the Hub has nothing of this name: check the name and, if it is private, `hf auth login`",
}
"""HTTP status -> its meaning for what is read, and the mend."""
WRITING = {
    401: "the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there: give it write access, or another --repo",
    404: "there is no such repository, or you may not see it: check --repo",
    409: "the repository has changed in the meantime: run the command again",
}
"""HTTP status -> its meaning for what is written, and the mend."""
BUSY = "the Hub asks for patience: try again later, or with a token"
FAILED = "the Hub failed: try again later"
GATED = "access is granted on request: accept its conditions on its page and use a token, `hf auth login`"
ATTEMPTS = 3
"""Attempts of a request to the Hub's API."""
REPEATED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""
HTTP_LIBRARIES = ("httpx", "httpx2", "requests")


@contextlib.contextmanager
def hub_errors(failed: str, meanings: Mapping[int, str] = READING, otherwise: str = "") -> Iterator[None]:
    """Turn errors of the Hub, and of the way to it, into a UsageError.

    Args:
        failed: Beginning of the message: what failed.
        meanings: `READING` or `WRITING`.
        otherwise: What to do instead where there is no network.

    Raises:
        UsageError: The Hub refuses or cannot be reached, or the disk of its cache is full.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = hub_reason(error, meanings) or _local_reason(error, otherwise)
        if reason is None:
            raise
        raise UsageError(f"{failed}: {reason}") from error


def repeat_request(request: Callable[[], T], attempts: int = ATTEMPTS, after_cuts: bool = True) -> T:
    """Return the answer to a request, which is repeated while the Hub is busy or the connection breaks.

    Args:
        request: Sends it; raises what the Hub or the network answers.
        attempts: Most attempts.
        after_cuts: Whether it is repeated after a broken connection, too, and not only if the Hub is busy.
    """
    from huggingface_hub import constants

    attempt = 0
    while True:
        try:
            return request()
        except Exception as error:
            attempt += 1
            is_cut = after_cuts and any(map(is_transport, causes_of(error)))
            is_known = (response_of(error) is not None or is_cut) and not constants.HF_HUB_OFFLINE
            wait = wait_of(error, attempt) if is_known else None
            if wait is None or attempt >= attempts:
                raise
            time.sleep(wait)


def hub_reason(error: BaseException, meanings: Mapping[int, str] = READING) -> str | None:
    """Return why the Hub refused a request, with the mend; None if it did not answer."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    causes, response = list(causes_of(error)), response_of(error)
    if response is None:
        return None
    status = int(response.status_code)
    meaning = meanings.get(status, BUSY if status == 429 else FAILED)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        meaning = GATED
    elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        meaning = "it has no such revision"
    elif status == 404 and any(isinstance(cause, EntryNotFoundError) for cause in causes):
        meaning = f"it lacks a file: {response.url}"
    wait = response.headers.get("Retry-After")
    seconds = f", after {wait} seconds" if status == 429 and wait not in (None, "0") else ""
    return f"{meaning} (HTTP {status}{seconds})"


def _local_reason(error: BaseException, otherwise: str) -> str | None:
    """Return why a request did not reach the Hub, or its answer the disk, with the mend; None for any other error."""
    from huggingface_hub import constants, errors

    mend = f"check the name and the network{otherwise and f', or {otherwise}'}"
    for cause in causes_of(error):
        if isinstance(cause, errors.HFValidationError):
            return f"this is not the name of a repository: {describe_error(cause)}"
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return WRITING[401]
        if isinstance(cause, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
            return f"{why}, and it is not in the local cache: {mend}"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk of the local cache is full: free space, or set HF_HOME to another disk"
        if is_transport(cause):
            return f"no connection ({type(cause).__name__}): {mend}"
    # transformers and datasets report an unreachable Hub as an OSError without a number
    return f"{type(error).__name__}: {mend}" if isinstance(error, OSError) and error.errno is None else None


def is_transport(error: BaseException) -> bool:
    """Return whether an error comes from the network, whichever HTTP library huggingface_hub uses."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def response_of(error: BaseException) -> Any:
    """Return the response of the Hub that caused an error, or None."""
    for cause in causes_of(error):
        response = getattr(cause, "response", None)
        if response is not None and getattr(response, "status_code", None) is not None:
            return response
    return None


def wait_of(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before a request is repeated; None if repeating it is of no use.

    Args:
        error: What the last attempt ended in.
        attempt: Number of attempts that failed in a row.
    """
    response = response_of(error)
    if response is not None and int(response.status_code) not in REPEATED:
        return None
    given = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(given), 300.0) if given.isdecimal() else min(2.0**attempt, 30.0)
