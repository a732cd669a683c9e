"""A language model behind any endpoint that speaks OpenAI's API: one question, one reply.

A key, if the endpoint needs one, is read from OPENAI_API_KEY; it is never printed and never written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES, TIMEOUT = 6, 120
"""Requests for one question, and seconds that each may take."""
LONGEST_WAIT = 60.0
"""Seconds between two requests, at most."""
FEWEST_REFUSED = 3
"""Refused questions after which an endpoint that answers none is given up."""
TRANSIENT = (429, 500, 502, 503, 504)
"""HTTP status codes after which a later request may succeed."""


class Refused(Exception):
    """One question that an endpoint does not accept."""


def check_endpoint(url: str) -> None:
    """Check an endpoint's address, and the key in the environment.

    Raises:
        UsageError: one of them cannot be right.
    """
    secret = os.environ.get(KEY_VARIABLE, "")
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"--url must begin with http:// or https://, not {url!r}")
    if "?" in url or "#" in url:
        raise UsageError(f"--url must be the address alone, without what follows ? or #: set {KEY_VARIABLE} for a key")
    if "@" in url:
        raise UsageError(f"--url must hold no password: set {KEY_VARIABLE}")
    if not secret.isascii() or re.search(r"\s", secret):
        raise UsageError(f"{KEY_VARIABLE} holds what no key does: a blank, a line's end, or letters that are not ASCII")


def require_reachable(url: str) -> None:
    """Connect to an endpoint and ask nothing, so that a wrong address is found before long work.

    Raises:
        UsageError: nothing listens there. Behind a proxy, which connects by itself, it is not tried.
    """
    import socket
    from urllib.parse import urlsplit

    from requests.utils import get_environ_proxies

    try:
        if get_environ_proxies(url):
            return
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((str(parts.hostname), port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot reach --url {url} ({describe_error(error)}): check it, and the network") from error


def ask(url: str, model: str, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Return the reply of an endpoint.

    Args:
        url: Its address, such as http://localhost:8000/v1.
        model: Its name of the language model.
        messages: The conversation, each with `role` and `content`.
        options: Further fields of the request, such as `max_tokens`.

    Raises:
        UsageError: the endpoint cannot be reached or does not reply. No message contains the key.
        Refused: the endpoint does not accept this question.
    """
    import requests

    secret = os.environ.get(KEY_VARIABLE)
    body = {"model": model, "temperature": 0, "messages": list(messages), **options}
    address = url.rstrip("/") + "/chat/completions"

    def sign(request: PreparedRequest) -> PreparedRequest:  # given in any case: it keeps ~/.netrc from being read
        if secret:
            request.headers["Authorization"] = f"Bearer {secret}"
        return request

    for attempt in range(TRIES):
        try:
            response = requests.post(address, json=body, timeout=TIMEOUT, auth=sign)
        except requests.RequestException as error:
            if attempt + 1 == TRIES:
                raise UsageError(f"cannot reach {address} ({type(error).__name__}): check --url") from error
        else:
            if response.status_code not in TRANSIENT or attempt + 1 == TRIES:
                return _read_reply(address, response)
            _wait(attempt, response.headers.get("Retry-After", ""))
            continue
        _wait(attempt)
    raise AssertionError("unreachable")


def _read_reply(address: str, response: Response) -> str:
    status = response.status_code
    if status in (401, 403):
        raise UsageError(f"{address} refuses (HTTP {status}): set {KEY_VARIABLE} to a valid key")
    if status in (400, 413, 422):
        raise Refused(f"{address} answers HTTP {status}: {' '.join(response.text.split())[:200]}")
    if status == 429:
        raise UsageError(f"{address} asks for patience (HTTP 429), {TRIES} times: try again later; replies are kept")
    if status >= 500:
        raise UsageError(f"{address} fails (HTTP {status}), {TRIES} times: try again later; replies are kept")
    if status != 200:
        raise UsageError(f"{address} answers HTTP {status}: check --url and the name of the model")
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{address} does not answer with a chat completion: check --url") from error
    if not isinstance(content, str) or not content.strip():
        raise Refused(f"{address} answers without text")
    return content


def _wait(attempt: int, asked_for: str = "") -> None:
    """Wait as long as the endpoint asks for, or twice as long as the time before."""
    import time

    seconds = float(asked_for) if re.fullmatch(r"\d+(\.\d+)?", asked_for) else float(2**attempt)
    time.sleep(min(seconds, LONGEST_WAIT))
