"""Fill the generated parts of Markdown documents from results, and check that they are up to date.

A block lies between two comments: `<!-- leaderboard OPTIONS -->` and `<!-- /leaderboard -->` hold tables of boards,
`reliability` in place of `leaderboard` how much their numbers vary between seeds, `variants` and `evaluations` what the
package holds. Numbers in sentences are generated, too (`sentences`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from eval_runners.leaderboard.catalogue import evaluation_table, variant_table
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.reliability import reliability_markdown
from eval_runners.leaderboard.render import table_heads, to_markdown
from eval_runners.leaderboard.select import add_columns, add_filters, choose_columns, filter_boards
from eval_runners.leaderboard.sentences import COMMENT, Sentences
from eval_runners.store.read import Result
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError

BLOCK = re.compile(
    r"(?P<start><!-- (?P<kind>leaderboard|reliability|variants|evaluations)(?P<options>[^>]*)-->\n).*?"
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
            too wide, or `Sentences` refuses a number.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if not COMMENT.search(text):
        raise UsageError(f"{file} has no table or number: no <!-- leaderboard --> ... <!-- /leaderboard -->")

    def fill_block(match: re.Match[str]) -> str:
        options = match["options"].strip()
        if options and match["kind"] != "leaderboard":
            raise UsageError(f"{file}: <!-- {match['kind']} --> has no options: leave out {options!r}")
        content = {
            "leaderboard": lambda: _render_boards(file, boards, options),
            "reliability": lambda: reliability_markdown(results),
            "variants": variant_table,
            "evaluations": lambda: evaluation_table(results),
        }[match["kind"]]()
        return f"{match['start']}\n{content.strip()}\n\n{match['end']}"

    sentences, pieces, end = Sentences(file, boards), [], 0
    for block in BLOCK.finditer(text):
        pieces += [sentences.fill(text[end : block.start()]), fill_block(block)]
        end = block.end()
    return text, "".join([*pieces, sentences.fill(text[end:])])


def _render_boards(file: Path, boards: Sequence[Board], options: str) -> str:
    parser = Parser(prog=f"leaderboard in {file}")
    add_filters(parser)
    add_columns(parser)
    parser.add_argument("--legend", action="store_true", help="Explain bold and marks below the table.")
    parser.add_argument("--no-commands", action="store_true", help="Leave out the commands that made the rows.")
    args = parser.parse_args(shlex.split(options))
    chosen = choose_columns(filter_boards(boards, args), args)
    if not chosen:
        raise UsageError(f"{file}: no results for the table {options!r}")
    for board in chosen:
        if (width := len(table_heads(board))) > WIDEST:
            raise UsageError(
                f"{file}: the table {options!r} has {width} columns, more than {WIDEST}: choose with --columns"
            )
    return to_markdown(chosen, args.legend, not args.no_commands)
