"""Errors of the Hugging Face Hub in one line: what the status means and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sae_variants.common.errors import UsageError

REASONS = {
    401: "the Hub does not know the token (HTTP 401), or the name is wrong: check the name and `hf auth login`",
    403: "access is refused (HTTP 403): check the rights of your token",
    404: "the Hub has nothing of this name (HTTP 404): check the name and, if it is private, `hf auth login`",
    429: "the Hub asks for patience (HTTP 429): try again later, or with a token",
}
GATED = "access is granted on request (HTTP {}): accept its conditions on its page and use a token, `hf auth login`"
FAILED = "the Hub failed (HTTP {}): try again later"
RETRIED = (408, 425, 429, 500, 502, 503, 504)


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


def hub_reason(error: BaseException) -> str | None:
    """Return why the Hub refused a request, with the mend; None if it did not answer."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    causes, response = list(causes_of(error)), response_of(error)
    if response is None:
        return None
    status = int(response.status_code)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return GATED.format(status)
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"it has no such revision (HTTP {status})"
    if status == 404 and any(isinstance(cause, EntryNotFoundError) for cause in causes):
        return f"it lacks a file (HTTP {status}): {response.url}"
    wait = response.headers.get("Retry-After")
    hint = f" (it says: after {wait} seconds)" if status == 429 and wait not in (None, "0") else ""
    return REASONS.get(status, FAILED.format(status)) + hint


def wait_of(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before a request is repeated; None if repeating it is of no use.

    Args:
        error: What the last attempt ended in.
        attempt: Number of attempts that failed in a row.
    """
    response = response_of(error)
    if response is not None and int(response.status_code) not in RETRIED:
        return None
    given = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(given), 300.0) if given.isdecimal() else min(2.0**attempt, 30.0)


def refusal(what: str, error: BaseException) -> UsageError | None:
    """Return the UsageError for an answer of the Hub that refuses `what`; None if the Hub did not answer."""
    reason = hub_reason(error)
    return None if reason is None else UsageError(f"cannot get {what} on the Hugging Face Hub: {reason}")
