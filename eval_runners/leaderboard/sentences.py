"""Fill in the numbers of a document's sentences from results, and check that the sentences still hold.

A comment right behind a number says what it is:

    <!-- numbers --model sandbox --metric explained_variance_corrected --seeds 2,3,4,5,6 -->
    `refined` explains 0.025 ± 0.004<!-- refined[k=15] - stock:batchtopk[k=15] --> more, and 0.793<!-- refined[k=15] -->

`A - B` is the mean difference of two rows, paired over seeds, ± half of its 95 % interval (Student's t), as
`leaderboard why A B` prints it; `A` alone is the number of a row. A difference must have the sign that is written, and
its interval must exclude 0; of `? A - B` it must not. `: METRIC` and `, seeds 2,3,4` behind the rows replace those of
`<!-- numbers OPTIONS -->`, which hold until the next such comment; MODEL/A is a row of another language model. Each
seed that is named must be there; where none is, all common seeds count. A number keeps as many digits as are written,
and has more only where half of its interval, or a difference that is not 0, would be 0. Before ` %` it is in per cent.

A comment must be such a description if it follows a number, or if it or what follows its ` - ` begins with the name of
a row. Any other is left alone, and so are code blocks and code within a line.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import fmean

from eval_runners.leaderboard.compare import find_rows
from eval_runners.leaderboard.markdown import CommentParser, hide_code
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import Column, Row
from eval_runners.leaderboard.select import choose_columns
from eval_runners.store.seeds import FEWEST_SEEDS, common_differences, half_width
from sae_variants.cli.options import parse_seeds
from sae_variants.common.errors import UsageError, check_name

NUMBER = r"(?<!\w)(?P<mean>[-−]?\d+(?:\.\d+)?)(?:(?P<between>\s*±\s*)(?P<half>\d+(?:\.\d+)?))?(?P<unit> %)?"
COMMENT = re.compile(rf"(?:{NUMBER})?(?P<comment><!--(?P<content>.*?)-->|<!(?:[^\n<]*?-->)?|-->)", re.DOTALL)
"""A comment and the number right before it. What opens or closes no comment has no content."""
PART = re.compile(r"(?:\.|\d[,'’_\u00a0\u2009\u202f]|\d[eE][-−+]?|(?:±|\+/?[-−])\s*|(?<!\w)[‐‑‒–—]|−\s+)\Z")
"""What stands before a number that is only the end of one, or the half of an interval, or has no proper sign."""
NEAR_NUMBER = re.compile(r"(?<!\w)\d[\d.,e]*[*_)\]]*(?: ?%)?[^\S\n]*\n?[^\S\n]*\Z")
CLAIM = re.compile(
    r"(?P<equal>\? (?=.+ - ))?(?P<row>.+?)(?: - (?P<other>.+?))?(?:: (?P<metric>[\w.]+))?(?:, seeds (?P<seeds>[\d,]+))?"
)
KINDS = ("leaderboard", "reliability", "variants", "evaluations")
"""First words of the comments around generated blocks."""
MOST_PLACES = 6
"""Digits after the point of the smallest interval that is printed, and of numbers in errors."""


class Sentences:
    """Fills in the text of one document, outside its generated blocks, piece by piece from the top."""

    def __init__(self, text: str, boards: Sequence[Board]) -> None:
        self.visible = hide_code(text)
        self.refusals: list[str] = []
        """A line for every comment that was refused."""
        self.n_numbers = 0
        self._text, self._boards = text, boards
        self._row_names = {name for board in boards for row in board.rows for name in (row.name, row.label)}
        self._parser = CommentParser()
        self._parser.add_argument("--model")
        self._parser.add_argument("--metric")
        self._parser.add_argument("--seeds", type=parse_seeds)
        self._defaults = self._parser.parse("")
        self._column = cache(self._find_column)

    def fill(self, start: int, end: int) -> str:
        """A part of the text, with every number that a comment describes replaced.

        `refusals` gets a line for a comment that has no number before it, names what is not there, or stands in a
        sentence that no longer holds.
        """
        pieces = []
        for match in COMMENT.finditer(self.visible, start, end):
            content = " ".join((match["content"] or "").split())
            pieces.append(self._text[start : match.start()])
            start = match.end()
            with self.refuse(match.start("comment"), match["content"] and content):
                pieces.append(self._fill(match, content))
        return "".join([*pieces, self._text[start:end]])

    @contextmanager
    def refuse(self, position: int, content: str | None) -> Iterator[None]:
        """Turn a UsageError on the comment at that position of the text into a refusal."""
        try:
            yield
        except UsageError as error:
            comment = f"<!-- {content} -->: " if content else ""
            self.refusals.append(f"line {self._text.count(chr(10), 0, position) + 1}: {comment}{error}")

    def _fill(self, match: re.Match[str], content: str) -> str:
        kind, _, options = content.partition(" ")
        if match["content"] is None or "<!" in content:
            raise UsageError("a comment begins with <!-- and ends with -->, and this one lacks one of them")
        if kind.removeprefix("/") in KINDS:
            kind = kind.removeprefix("/")
            raise UsageError(
                f"a block begins with <!-- {kind} --> at the end of a line, and ends with <!-- /{kind} -->"
            )
        if kind == "numbers":
            self._defaults = self._parser.parse(options)
        elif match["mean"] or self._names_row(content) or NEAR_NUMBER.search(self.visible, 0, match.start()):
            self.n_numbers += 1
            return self._generate(match, content) + match["comment"]
        return match[0]

    def _names_row(self, content: str) -> bool:
        """Whether a side of ` - ` begins with the name of a row."""
        words = [
            side.partition(" ")[0].partition("[")[0].rstrip(":,") for side in content.removeprefix("? ").split(" - ")
        ]
        return any({word, word.partition("/")[2]} & self._row_names for word in words)

    def _generate(self, match: re.Match[str], content: str) -> str:
        """The number that a comment describes, as it stands in the sentence."""
        claim = CLAIM.fullmatch(content)
        if not match["mean"] or not claim:
            raise UsageError("it has no number right before it")
        if PART.search(self.visible, max(0, match.start("mean") - 9), match.start("mean")):
            raise UsageError(
                f"{match['mean']} is only a part of its number: write it like 1024, -0.01 or 0.013 ± 0.002"
            )
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
        apart = abs(mean) > half and round(mean, MOST_PLACES) != 0
        is_negative = match["mean"].startswith(("-", "−"))
        holds = not apart if claim["equal"] else apart and (mean < 0) == is_negative
        if not holds:
            now = f"{mean:.{MOST_PLACES}f} ± {half:.{MOST_PLACES}f}, {'' if apart else 'not '}told apart from 0"
            raise UsageError(f'rewrite the sentence "{self._end_of_sentence(match)}": it is now {now}')
        return _format(match, mean, half, apart)

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

    def _end_of_sentence(self, match: re.Match[str]) -> str:
        """The last words up to and with a number."""
        before = self._text[max(0, match.start() - 1000) : match.end("mean")]
        return "... " + " ".join(re.sub(r"<!--.*?-->", "", before, flags=re.DOTALL).split())[-70:]

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


def _format(match: re.Match[str], mean: float, half: float, apart: bool = False) -> str:
    """A number in the form of the one that stands there. One that is told apart from 0 is not 0."""
    places = len(match["mean"].partition(".")[2])
    if match["unit"]:
        mean, half = 100 * mean, 100 * half
    for number in (mean if apart else 0.0, half if match["half"] else 0.0):
        while round(number, MOST_PLACES) and not round(number, places):
            places += 1
    interval = f"{match['between']}{half:.{places}f}" if match["half"] else ""
    number = f"{mean:z.{places}f}"
    return f"{number.replace('-', '−') if '−' in match['mean'] else number}{interval}{match['unit'] or ''}"
