"""Choose the results, boards and rows that a command's filters ask for."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_runners.contract.registry import evaluator_of_type, load_evaluator
from eval_runners.leaderboard.boards import Board, make_boards, select_evaluations
from eval_runners.leaderboard.rows import Row
from eval_runners.store.read import (
    BASELINES,
    PUBLISHED,
    RUNS,
    Result,
    read_results,
)
from sae_variants.common.errors import UsageError, check_name


def find_boards(args: Any) -> tuple[list[Board], list[str]]:
    """The boards that a command's options ask for, and the files that are no results. UsageError if there is none."""
    results, broken = read_requested(args)
    every = make_boards(results)
    _check_names(every, args)
    boards = filter_boards(every, args)
    if not boards:
        raise UsageError("no results of that kind in " + (", ".join(args.results) or "results"))
    return boards, broken


def read_requested(args: Any) -> tuple[list[Result], list[str]]:
    """Every result that a command's options ask for, and the files that are none."""
    return read_folders([Path(folder) for folder in args.results] or [PUBLISHED, BASELINES, RUNS], bool(args.results))


def add_result_folders(parser: Any) -> None:
    parser.add_argument(
        "--results", action="append", default=[], metavar="FOLDER",
        help="where results lie; may be repeated (default: results/published, results/baselines, results/runs)",
    )  # fmt: skip


def add_filters(parser: Any) -> None:
    parser.add_argument("--model", metavar="NAME", help="only results on this language model, e.g. sandbox")
    parser.add_argument("--evals", metavar="NAME,...", help="only these evaluations, their columns in this order")
    parser.add_argument("--sae", metavar="NAME,...", help="only these SAEs, whatever their fields")
    parser.add_argument("--d-sae", type=int, metavar="N", help="only rows of so many latents")
    parser.add_argument("--l0", type=float, metavar="X", help="only rows within 15 %% of this L0")
    parser.add_argument(
        "--recipe",
        action="store_true",
        help="only SAEs as their target's recipe has them, but for L0 and width",
    )


def read_folders(folders: list[Path], asked: bool) -> tuple[list[Result], list[str]]:
    """Every result in the folders; files that are none are named and counted."""
    for folder in folders:
        if asked and not folder.is_dir():
            raise UsageError(f"no folder {str(folder)!r}")
    results, broken = read_results(folders)
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {len(results) + len(broken)} are no results", file=sys.stderr)
    types = Counter(result["eval_type_id"] for result in results)
    unknown = {name: number for name, number in types.items() if evaluator_of_type(name) is None}
    for name, number in unknown.items():
        print(f"left out: {number} results of {name!r}, an evaluation that is not known here", file=sys.stderr)
    return [result for result in results if result["eval_type_id"] not in unknown], broken


def _check_names(boards: list[Board], args: Any) -> None:
    """UsageError, with the near names, for a model or an SAE that no result is of."""
    rows = [(board.model, row.name) for board in boards for row in board.rows if row.results]
    if rows and args.model:
        check_name("model", args.model, {model for model, _ in rows})
    for name in (args.sae or "").split(",") if rows else ():
        if name:
            check_name("SAE", name.strip(), {label for _, label in rows})


def filter_boards(boards: list[Board], args: Any) -> list[Board]:
    if args.evals:
        types = [load_evaluator(name.strip()).result_type for name in args.evals.split(",")]
        boards = [select_evaluations(board, types) for board in boards]
    chosen = []
    for board in boards:
        if args.model and board.model != args.model:
            continue
        rows = [row for row in board.rows if not row.results or _is_wanted(row, args)]
        if any(row.results for row in rows):
            chosen.append(replace(board, rows=rows))
    return chosen


def _is_wanted(row: Row, args: Any) -> bool:
    if args.sae and row.name not in [name.strip() for name in args.sae.split(",")]:
        return False
    if args.recipe and row.changed_kind:
        return False
    if args.d_sae and row.d_sae != args.d_sae:
        return False
    return args.l0 is None or has_l0_near(row, [args.l0])


def has_l0_near(row: Row, levels: list[float]) -> bool:
    """Whether a row's L0 is within 15 % of one of these."""
    return row.l0 is not None and any(abs(row.l0 - level) <= 0.15 * level for level in levels)
