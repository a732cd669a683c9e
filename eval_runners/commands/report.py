"""python -m eval_runners report: the leaderboard as one HTML page that opens from disk and fetches nothing.

It opens with one trusted metric over L0, a line for each architecture, beside differences to a baseline at matched L0.
Under them are every metric and curve of the leaderboard by question, the course of trainings that were logged
(`train --log`), and a sortable table. The address keeps what is chosen. The page holds its data, its style, its script
and Plotly, compressed. Pure: imports no torch.
"""

from __future__ import annotations

import base64
import gzip
import json
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval_runners.contract.registry import USUAL_EVALUATIONS
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import ARROWS, LEGEND
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards
from eval_runners.store.logs import Line, read_logs
from eval_runners.store.paths import without_paths
from eval_runners.views.page import render_page
from eval_runners.views.report_data import QUESTIONS, describe_board, describe_evaluations
from sae_variants.cli.options import Parser
from sae_variants.common.files import write_atomically
from sae_variants.common.values import finite_or_none
from sae_variants.training.plan import trained_root


def main(argv: list[str]) -> int:
    """Run the command. Returns 1 if a file holds no result."""
    parser = Parser(prog="python -m eval_runners report", description=__doc__)
    add_result_folders(parser)
    add_filters(parser)
    parser.add_argument("--output", default="report.html", metavar="FILE", help="The page (default: %(default)s).")
    parser.add_argument("--trained", metavar="FOLDER", help="Root of trained SAEs, for the logs of their trainings.")
    parser.add_argument("--open", action="store_true", help="Open the page in the browser.")
    args = parser.parse_args(argv)
    boards, broken = find_boards(args)
    text = render_report(boards, broken, read_logs(trained_root(args.trained)))
    write_atomically(Path(args.output), text, "--output")
    rows = sum(bool(row.results) for board in boards for row in board.rows)
    print(f"{args.output}: {rows} rows on {len(boards)} boards, {len(text.encode()) / 2**20:.1f} MiB")
    if args.open and not webbrowser.open(Path(args.output).resolve().as_uri()):
        print(f"--open found no browser: open {args.output} yourself")
    return 1 if broken else 0


def render_report(
    boards: Sequence[Board], broken: Sequence[str], logs: Mapping[str, Sequence[Line]] | None = None
) -> str:
    """Render the whole page. Text of results is data, never markup.

    Args:
        boards: what the page shows, the boards with results of ours first.
        broken: a line for every file that holds no result.
        logs: weight hash -> lines of the log of its training.
    """
    from plotly.offline import get_plotlyjs

    described = [describe_board(board, logs or {}) for board in sorted(boards, key=_order)]
    data = {
        "evaluations": describe_evaluations(boards),
        "questions": list(QUESTIONS),
        "broken": [without_paths(reason) for reason in broken],
        "legend": LEGEND,
        "usual": USUAL_EVALUATIONS,
        "arrows": ARROWS,
    }
    packed = _compress(json.dumps(finite_or_none(described), separators=(",", ":"), allow_nan=False))
    return render_page("report.html", data, boards=packed, plotly=_compress(get_plotlyjs()))


def _order(board: Board) -> tuple[bool, int]:
    """Boards with results of ours first, the one with most rows before the others."""
    return not any(row.seeds for row in board.rows), -len(board.rows)


def _compress(text: str) -> str:
    """Base64 of the gzipped text, which the page's script unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
