"""Kinds of tokens that can be read off a token's text."""

from __future__ import annotations

TOKEN_KINDS = ("digit", "punctuation", "capital", "word start")


def token_kinds(token: str) -> list[str]:
    """Name the kinds that a token belongs to.

    Args:
        token: text of the token, with its leading space.

    Returns:
        Elements of `TOKEN_KINDS`, in their order.
    """
    text = token.strip()
    belongs = {
        "digit": any(letter.isdigit() for letter in text),
        "punctuation": bool(text) and not any(letter.isalnum() for letter in text),
        "capital": text[:1].isupper(),
        "word start": token[:1].isspace() and text[:1].isalpha(),
    }
    return [kind for kind in TOKEN_KINDS if belongs[kind]]
