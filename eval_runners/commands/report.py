"""python -m eval_runners report: the leaderboard as one HTML page that opens from disk and fetches nothing.

It shows every metric of the leaderboard over L0, curves of metrics that belong together (autocorrelation over the lag,
probing over k), histograms of firing rates, the course of trainings that were logged (`train --log`), and a sortable
table; filters by target, L0, width and SAE. The page holds
its data, its style, its script (`report.html`) and Plotly, compressed. Pure: imports no torch.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_runners.contract.registry import USUAL_EVALUATIONS
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import ARROWS, LEGEND, board_title, describe_conditions, format_count
from eval_runners.leaderboard.rows import Row
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards, has_l0_near
from eval_runners.store.logs import Line, read_logs
from eval_runners.store.paths import without_paths
from eval_runners.views.page import render_page
from sae_variants.cli.options import Parser
from sae_variants.common.files import write_atomically
from sae_variants.training.plan import trained_root


def main(argv: list[str]) -> int:
    """Run the command. Returns 1 if a file holds no result."""
    parser = Parser(prog="python -m eval_runners report", description=__doc__)
    add_result_folders(parser)
    add_filters(parser)
    parser.add_argument("--output", default="report.html", metavar="FILE", help="The page (default: %(default)s).")
    parser.add_argument("--trained", metavar="FOLDER", help="Root of trained SAEs, for the logs of their trainings.")
    args = parser.parse_args(argv)
    boards, broken = find_boards(args)
    text = render_report(boards, broken, read_logs(trained_root(args.trained)))
    write_atomically(Path(args.output), text, "--output")
    rows = sum(bool(row.results) for board in boards for row in board.rows)
    print(f"{args.output}: {rows} rows on {len(boards)} boards, {len(text.encode()) / 2**20:.1f} MiB")
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
    data = {
        "boards": [_describe_board(board, logs or {}) for board in sorted(boards, key=_order)],
        "broken": [without_paths(reason) for reason in broken],
        "legend": LEGEND,
        "usual": USUAL_EVALUATIONS,
        "arrows": ARROWS,
    }
    return render_page("report.html", data, plotly=_compressed_plotly())


def _order(board: Board) -> tuple[bool, int]:
    """Boards with results of ours first, the one with most rows before the others."""
    return not any(row.seeds for row in board.rows), -len(board.rows)


def _compressed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _describe_board(board: Board, logs: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    group_of = {id(row): number for number, group in enumerate(board.levels) for row in group}
    for row in board.rows:  # an untrained row is shown with the group of about its L0
        if row.untrained:
            near = (n for n, group in enumerate(board.levels) if has_l0_near(row, [r.l0 for r in group if r.l0]))
            group_of[id(row)] = next(near, -1)
    curves: dict[str, dict[str, Any]] = {}
    for column in board.columns:
        if curve := column.metric.curve:
            new = {"title": curve.title, "over": curve.axis, "better": column.metric.better, "points": []}
            curves.setdefault(curve.title, new)["points"].append([curve.x, column.key])
    return {
        "title": board_title(board),
        "about": [f"{name}: {describe_conditions(conditions)}" for name, conditions in board.conditions.items()],
        "columns": [
            {
                "key": column.key,
                "head": column.head,
                "title": column.metric.title,
                "evaluation": column.evaluation,
                "better": column.metric.better,
                "trust": ": ".join(filter(None, (column.metric.trust, column.metric.why_trust))),
            }
            for column in board.shown
        ],
        "curves": list(curves.values()),
        "groups": [_group_title(group) for group in board.levels],
        "rows": [
            _describe_row(board, row, group_of.get(id(row)), curves) | {"logs": _describe_logs(row, logs)}
            for row in board.rows
        ],
    }


def _group_title(group: Sequence[Row]) -> str:
    levels = [row.l0 for row in group if row.l0]
    mean = f"L0 ≈ {sum(levels) / len(levels):.3g}" if levels else "L0 unknown"
    return f"{mean}, {format_count(group[0].d_sae)} latents, {format_count(group[0].training_tokens)} tokens"


def _describe_row(board: Board, row: Row, group: int | None, curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    in_curves = {key for curve in curves.values() for _, key in curve["points"]}
    values: dict[str, Any] = {}
    for column in board.columns:
        if not column.metric.short and column.key not in in_curves:
            continue
        number = row.number(column)
        if number is None:
            values[column.key] = {"why": row.why_missing(column)}
        else:
            rank, front = board.rank(row, column), board.on_front(row, column)
            marks = {"rank": rank} | ({"front": True} if front else {})
            marks |= {"best": True} if board.is_best(row, column) else {}
            values[column.key] = {"at": _round(number[0]), "half": _round(number[1]), **marks}
    densities = [
        unstructured["densities"]
        for result in row.results.get("core", [])
        if "densities" in (unstructured := result.get("eval_result_unstructured") or {})
    ]
    return {
        "label": row.label,
        "name": row.name,
        "l0": _round(row.l0),
        "d_sae": row.d_sae,
        "tokens": row.training_tokens,
        "seeds": row.seeds,
        "untrained": row.untrained,
        "is_sae": bool(row.results),
        "group": group,
        "varied": row.has_other_recipe,
        "commands": row.provenance("command"),
        "commits": row.provenance("commit"),
        "source": row.source,
        "values": values,
        "densities": _mean_densities(densities),
    }


def _mean_densities(densities: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean over seeds of the histograms of firing rates; None if their bins differ."""
    if not densities or len({(each["log10_from"], each["bins_per_decade"]) for each in densities}) > 1:
        return None
    bins = zip(*(each["counts"] for each in densities), strict=True)
    never = sum(each["never"] for each in densities) / len(densities)
    return {**densities[0], "counts": [_round(sum(n) / len(densities)) for n in bins], "never": _round(never)}


def _describe_logs(row: Row, logs: Mapping[str, Sequence[Line]]) -> list[dict[str, Any]]:
    """Numbers over training tokens of each of a row's SAEs whose training was logged."""
    described = []
    for digest in sorted(row.weight_hashes & logs.keys()):
        lines = logs[digest]
        names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "tokens", "phase"))
        values = {name: [_round(line.get(name)) for line in lines] for name in names}
        described.append({"tokens": [line["tokens"] for line in lines], "values": values})
    return described


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
