"""Markdown documents: code, in which comments and numbers are examples, and the options that comments have."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from typing import NoReturn

from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError

CODE = re.compile(
    r"<!--.*?-->"
    r"|^[ \t]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?:\A|(?<=\n\n))(?P<indented>(?:(?: {4}|\t)[^\n]*(?:\n|\Z)|\n)+)"
    r"|(?<![\\`])(?P<ticks>`+)(?!`)(?:(?!\n\s*(?:\n|[-*+] |[#>|]|\d+[.)] )).)+?(?<!`)(?P=ticks)(?!`)",
    re.DOTALL | re.MULTILINE,
)
"""Code, or a comment, in which a backtick begins no code."""
LIST = re.compile(r"^(?:[ \t]|[-*+] |\d+[.)] )", re.MULTILINE)


class CommentParser(Parser):
    """Parser of the options in a comment, which has no --help."""

    def __init__(self) -> None:
        super().__init__(add_help=False)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with the message."""
        raise UsageError(message)

    def parse(self, options: str) -> Namespace:
        """Parse options as a shell would split them."""
        try:
            words = shlex.split(options)
        except ValueError as error:
            raise UsageError(f"its options cannot be read: {str(error).lower()}") from error
        return self.parse_args(words)


def hide_code(text: str) -> str:
    """The text with a backtick for every character of code, spaces aside: blocks with fences or indented, and spans.

    What is indented below a list is taken for text.
    """

    def hide(match: re.Match[str]) -> str:
        above = text[: match.start()].rstrip().rpartition("\n\n")[2]
        is_text = match[0].startswith("<!--") or (match["indented"] and LIST.search(above))
        return match[0] if is_text else re.sub(r"\S", "`", match[0])

    return CODE.sub(hide, text)
