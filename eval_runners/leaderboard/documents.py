"""Fill the generated parts of Markdown documents from results, and check that they are up to date.

A block lies between two comments: `<!-- leaderboard OPTIONS -->` and `<!-- /leaderboard -->` hold tables of boards,
`reliability` in place of `leaderboard` how much their numbers vary between seeds, `variants` and `evaluations` what the
package holds. Numbers in sentences are generated, too (`sentences`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eval_runners.leaderboard.catalogue import evaluation_table, variant_table
from eval_runners.leaderboard.markdown import CommentParser
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.reliability import reliability_markdown
from eval_runners.leaderboard.render import table_heads, to_markdown
from eval_runners.leaderboard.select import add_columns, add_filters, choose_columns, filter_boards
from eval_runners.leaderboard.sentences import KINDS, Sentences
from eval_runners.store.read import Result
from sae_variants.common.errors import UsageError

BLOCK = re.compile(
    rf"(?P<start><!-- (?P<kind>{'|'.join(KINDS)})(?P<options>[^>]*)-->\n).*?"
    r"(?P<end><!-- /(?P=kind) -->)",
    re.DOTALL,
)
WIDEST = 10
"""Largest number of columns in a document's table, the name's and the sizes' included."""


def fill_blocks(file: Path, results: Sequence[Result], boards: Sequence[Board]) -> tuple[str, str]:
    """Generate the blocks of a document, and the numbers in its sentences.

    Args:
        file: the document.
        results: results that it is filled from.
        boards: boards of these results.

    Returns:
        The document as it is, and as it should be.

    Raises:
        UsageError: the file cannot be read, it has no block and no number, a block asks for a table that is empty or
            too wide, or `Sentences` refuses a number. The message has a line for each.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error

    def fill_block(match: re.Match[str]) -> str:
        options = match["options"].strip()
        if options and match["kind"] != "leaderboard":
            raise UsageError(f"it has no options: leave out {options!r}")
        content = {
            "leaderboard": lambda: _render_boards(boards, options),
            "reliability": lambda: reliability_markdown(results),
            "variants": variant_table,
            "evaluations": lambda: evaluation_table(results),
        }[match["kind"]]()
        return f"{match['start']}\n{content.strip()}\n\n{match['end']}"

    sentences, pieces, end = Sentences(text, boards), [], 0
    for block in BLOCK.finditer(sentences.visible):
        pieces.append(sentences.fill(end, block.start()))
        with sentences.refuse(block.start(), block["start"].strip()[5:-4]):
            pieces.append(fill_block(block))
        end = block.end()
    pieces.append(sentences.fill(end, len(text)))
    if sentences.refusals:
        raise UsageError("\n".join(f"{file}: {refusal}" for refusal in sentences.refusals))
    if not end and not sentences.n_numbers:
        raise UsageError(f"{file} has no table or number: no <!-- leaderboard --> ... <!-- /leaderboard -->")
    return text, "".join(pieces)


def _render_boards(boards: Sequence[Board], options: str) -> str:
    parser = CommentParser()
    add_filters(parser)
    add_columns(parser)
    parser.add_argument("--legend", action="store_true", help="Explain bold and marks below the table.")
    parser.add_argument("--no-commands", action="store_true", help="Leave out the commands that made the rows.")
    args = parser.parse(options)
    chosen = choose_columns(filter_boards(boards, args), args)
    if not chosen:
        raise UsageError("no results for its table")
    for board in chosen:
        if (width := len(table_heads(board))) > WIDEST:
            raise UsageError(f"its table has {width} columns, more than {WIDEST}: choose with --columns")
    return to_markdown(chosen, args.legend, not args.no_commands)
