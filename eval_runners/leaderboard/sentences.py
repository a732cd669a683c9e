"""Fill in the numbers of a document's sentences from results, and check that the sentences still hold.

A comment right behind a number says what it is:

    <!-- numbers --model sandbox --metric explained_variance_corrected --seeds 2,3,4,5,6 -->
    `refined` explains 0.025 ± 0.004<!-- refined[k=15] - stock:batchtopk[k=15] --> more, and 0.793<!-- refined[k=15] -->

`A - B` is the mean difference of two rows, paired over seeds, ± half of its 95 % interval (Student's t), as
`leaderboard why A B` prints it; `A` alone is the number of a row. A difference must have the sign that is written, and
its interval must exclude 0; of `? A - B` it must not. `: METRIC` and `, seeds 2,3,4` behind the rows replace those of
`<!-- numbers OPTIONS -->`, which hold until the next such comment; MODEL/A is a row of another language model. Each
seed that is named must be there; where none is, all common seeds count. A number keeps as many digits as are written,
and has more only where half of its interval would be 0. Before ` %` it is in per cent.
"""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from eval_runners.leaderboard.compare import find_rows
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import Column, Row
from eval_runners.leaderboard.select import choose_columns
from eval_runners.store.seeds import FEWEST_SEEDS, common_differences, half_width
from sae_variants.cli.options import Parser, parse_seeds
from sae_variants.common.errors import UsageError, check_name

NUMBER = r"(?<![\w.])(?<!±\s)(?P<mean>-?\d+(?:\.\d+)?)(?:(?P<between>\s*±\s*)(?P<half>\d+(?:\.\d+)?))?(?P<unit> %)?"
COMMENT = re.compile(rf"(?:{NUMBER})?(?P<comment><!--(?P<content>.*?)-->)", re.DOTALL)
CLAIM = re.compile(
    r"(?P<equal>\? (?=.+ - ))?(?P<row>.+?)(?: - (?P<other>.+?))?(?:: (?P<metric>[\w.]+))?(?:, seeds (?P<seeds>[\d,]+))?"
)
MOST_PLACES = 6
"""Digits after the point of the smallest interval that is printed, and of numbers in errors."""


class Sentences:
    """Fills in the text of one document, outside its generated blocks, piece by piece from the top."""

    def __init__(self, file: Path, boards: Sequence[Board]) -> None:
        self._file, self._boards = file, boards
        self._parser = Parser(prog=f"numbers in {file}")
        self._parser.add_argument("--model")
        self._parser.add_argument("--metric")
        self._parser.add_argument("--seeds", type=parse_seeds)
        self._defaults = self._parser.parse_args([])
        self._column = cache(self._find_column)

    def fill(self, text: str) -> str:
        """Replace every number that a comment describes.

        Raises:
            UsageError: a comment has no number before it, what it names is not there, or the sentence no longer holds.
        """
        return COMMENT.sub(self._fill, text)

    def _fill(self, match: re.Match[str]) -> str:
        content = " ".join(match["content"].split())
        if content.partition(" ")[0] == "numbers":
            self._defaults = self._parser.parse_args(shlex.split(content)[1:])
            return match[0]
        try:
            return self._generate(match, content) + match["comment"]
        except UsageError as error:
            raise UsageError(f"{self._file}: <!-- {content} -->: {error}") from error

    def _generate(self, match: re.Match[str], content: str) -> str:
        """The number that a comment describes, as it stands in the sentence."""
        claim = CLAIM.fullmatch(content)
        if not match["mean"] or not claim:
            raise UsageError("it has no number right before it")
        model, _, row_name = claim["row"].partition("/")
        if model not in {board.model for board in self._boards}:
            model, row_name = self._defaults.model, claim["row"]
        own = [f"--{name}={claim[name]}" for name in ("metric", "seeds") if claim[name]]
        options = self._parser.parse_args(own, Namespace(**vars(self._defaults)))
        column, seeds = self._column(model, options.metric), options.seeds
        board, row = self._find_row(model, row_name, column)
        if not claim["other"]:
            return self._of_one(match, row, column, seeds)
        other_board, other = self._find_row(model, claim["other"], column)
        if other_board is not board:
            raise UsageError("its rows have numbers under different conditions, which are not comparable")
        differences = common_differences(_by_seed(row, column, seeds), _by_seed(other, column, seeds))
        if len(differences) < FEWEST_SEEDS:
            raise UsageError(f"its rows share {len(differences)} seeds: a difference needs {FEWEST_SEEDS}")
        mean, half = fmean(differences), half_width(differences) or 0.0
        apart, is_negative = abs(mean) > half, match["mean"].startswith("-")
        holds = not apart if claim["equal"] else apart and (mean < 0) == is_negative
        if not holds:
            now = f"{mean:.{MOST_PLACES}f} ± {half:.{MOST_PLACES}f}, {'' if apart else 'not '}told apart from 0"
            raise UsageError(f'rewrite the sentence "{_end_of_sentence(match)}": it is now {now}')
        return _format(match, mean, half)

    def _of_one(self, match: re.Match[str], row: Row, column: Column, seeds: Sequence[int] | None) -> str:
        values = list(_by_seed(row, column, seeds).values()) if seeds else []
        mean, half = (fmean(values), half_width(values)) if values else row.number(column) or (0.0, None)
        if match["half"] and half is None:
            raise UsageError("one seed has no interval: leave out the ± behind its number")
        return _format(match, mean, half or 0.0)

    def _find_row(self, model: str | None, name: str, column: Column) -> tuple[Board, Row]:
        """The only row of that label with a number in the column."""
        found = find_rows(self._boards_of(model), name)
        rows = [(board, row) for board, row in found if row.number(column)]
        if not rows:
            raise UsageError(f"{name} has no {column.key}: {found[0][1].why_missing(column)}")
        if len(rows) > 1:
            models = ", ".join(dict.fromkeys(board.model for board, _ in rows))
            raise UsageError(f"{len(rows)} rows are called {name} ({models}): name --model, or another row")
        return rows[0]

    def _find_column(self, model: str | None, key: str | None) -> Column:
        if not key:
            raise UsageError("it names no metric: write `: METRIC` behind the rows, or --metric in <!-- numbers -->")
        return choose_columns(self._boards_of(model), Namespace(columns=key, complete=False))[0].chosen[0]

    def _boards_of(self, model: str | None) -> list[Board]:
        if model:
            check_name("model", model, {board.model for board in self._boards})
        return [board for board in self._boards if model in (None, board.model)]


def _by_seed(row: Row, column: Column, seeds: Sequence[int] | None) -> dict[int, float]:
    """Seed -> number, of these seeds or of all."""
    numbers = row.by_seed(column)
    if missing := [str(seed) for seed in seeds or () if seed not in numbers]:
        raise UsageError(f"{row.label} has no {column.key} of seed {', '.join(missing)}")
    return {seed: numbers[seed] for seed in seeds or numbers}


def _format(match: re.Match[str], mean: float, half: float) -> str:
    """A number in the form of the one that stands there."""
    places = len(match["mean"].partition(".")[2])
    if match["unit"]:
        mean, half = 100 * mean, 100 * half
    if match["half"]:
        while round(half, MOST_PLACES) and not round(half, places):
            places += 1
    interval = f"{match['between']}{half:.{places}f}" if match["half"] else ""
    return f"{mean:z.{places}f}{interval}{match['unit'] or ''}"


def _end_of_sentence(match: re.Match[str]) -> str:
    """The last words up to and with a number."""
    before = match.string[max(0, match.start() - 1000) : match.end("mean")]
    return "... " + " ".join(re.sub(r"<!--.*?-->", "", before, flags=re.DOTALL).split())[-70:]
