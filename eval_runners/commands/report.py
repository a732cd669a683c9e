"""python -m eval_runners report: the leaderboard as one HTML page that opens from disk and fetches nothing.

Every metric with a column on the leaderboard over L0, metrics that belong together as curves (autocorrelation over the
lag, probing over k), how often latents fire, and the table, sortable; filters by target, L0, width and SAE. The page
holds its data, its style, its script (`report.html`) and Plotly, compressed. Pure: imports no torch.
"""

from __future__ import annotations

import base64
import gzip
from importlib.resources import files
from pathlib import Path
from typing import Any

from eval_runners.contract.registry import USUAL_EVALUATIONS
from eval_runners.leaderboard.boards import Board
from eval_runners.leaderboard.render import ARROWS, LEGEND, board_title, describe_conditions, format_count
from eval_runners.leaderboard.rows import Row, column_key
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards, has_l0_near
from eval_runners.store.paths import without_paths
from eval_runners.views.page import render_page
from sae_variants.cli.options import Parser
from sae_variants.common.files import write_atomically


def main(argv: list[str]) -> int:
    parser = Parser(prog="python -m eval_runners report", description=__doc__)
    add_result_folders(parser)
    add_filters(parser)
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    args = parser.parse_args(argv)
    boards, broken = find_boards(args)
    text = render_report(boards, broken)
    write_atomically(Path(args.output), text, "--output")
    rows = sum(bool(row.results) for board in boards for row in board.rows)
    print(f"{args.output}: {rows} rows on {len(boards)} boards, {len(text.encode()) / 2**20:.1f} MiB")
    return 1 if broken else 0


def render_report(boards: list[Board], broken: list[str]) -> str:
    """The whole page. Text of results is data to it: nothing in them is ever taken for markup."""
    data = {
        "boards": [_described(board) for board in sorted(boards, key=_place)],
        "broken": [without_paths(reason) for reason in broken],
        "legend": LEGEND,
        "usual": USUAL_EVALUATIONS,
        "arrows": ARROWS,
    }
    return render_page("report.html", data, plotly=_plotly())


def _place(board: Board) -> tuple[bool, int]:
    """Boards with results of ours first, the fullest before."""
    return not any(row.seeds for row in board.rows), -len(board.rows)


def _plotly() -> str:
    script = files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode()


def _described(board: Board) -> dict[str, Any]:
    group_of = {id(row): number for number, group in enumerate(board.groups) for row in group}
    for row in board.rows:  # untrained ones of about that L0 stand beside
        if row.untrained:
            near = (n for n, group in enumerate(board.groups) if has_l0_near(row, [r.l0 for r in group if r.l0]))
            group_of[id(row)] = next(near, -1)
    curves: dict[str, dict[str, Any]] = {}
    for column in board.columns:
        if curve := column[1].curve:
            title, over, x = curve
            found = curves.setdefault(title, {"title": title, "over": over, "better": column[1].better, "points": []})
            found["points"].append([x, column_key(column)])
    return {
        "title": board_title(board),
        "about": [f"{name}: {describe_conditions(conditions)}" for name, conditions in board.conditions.items()],
        "columns": [
            {"key": column_key(c), "head": c[1].short, "title": c[1].title, "evaluation": c[0], "better": c[1].better}
            for c in board.shown
        ],
        "curves": list(curves.values()),
        "groups": [_group_title(group) for group in board.groups],
        "rows": [_row(board, row, group_of.get(id(row)), curves) for row in board.rows],
    }


def _group_title(group: list[Row]) -> str:
    levels = [row.l0 for row in group if row.l0]
    middle = f"L0 ≈ {sum(levels) / len(levels):.3g}" if levels else "L0 unknown"
    return f"{middle}, {format_count(group[0].d_sae)} latents, {format_count(group[0].training_tokens)} tokens"


def _row(board: Board, row: Row, group: int | None, curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    wanted = {key for curve in curves.values() for _, key in curve["points"]}
    values: dict[str, Any] = {}
    for column in board.columns:
        key = column_key(column)
        if not column[1].short and key not in wanted:
            continue
        number = row.number(column)
        if number is None:
            values[key] = {"why": row.why_not(column)}
        else:
            rank, front = board.rank(row, column), board.on_front(row, column)
            marks = {"rank": rank} | ({"front": True} if front else {})
            values[key] = {"at": _short(number[0]), "error": _short(number[1]), **marks}
    densities = [
        ours["densities"]
        for result in row.results.get("core", [])
        if "densities" in (ours := result.get("eval_result_unstructured") or {})
    ]
    return {
        "label": row.label, "name": row.name, "l0": _short(row.l0), "d_sae": row.d_sae, "tokens": row.training_tokens,
        "seeds": row.seeds, "untrained": row.untrained, "is_sae": bool(row.results), "group": group,
        "varied": row.changed_kind,
        "commands": row.said("command"), "commits": row.said("commit"), "source": row.source, "values": values,
        "densities": _mean_densities(densities),
    }  # fmt: skip


def _mean_densities(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Over seeds."""
    if not found or len({(one["log10_from"], one["bins_per_decade"]) for one in found}) > 1:
        return None
    counts = [_short(sum(bins) / len(found)) for bins in zip(*(one["counts"] for one in found), strict=True)]
    never = sum(one["never"] for one in found) / len(found)
    return {**found[0], "counts": counts, "never": _short(never)}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
