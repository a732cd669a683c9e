"""Choose the results, boards, rows and columns that the options of a command ask for."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval_runners.contract.registry import evaluator_of_type, load_evaluator
from eval_runners.leaderboard.boards import make_boards, select_columns, select_evaluations
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import Row
from eval_runners.store.read import (
    BASELINES,
    PUBLISHED,
    RUNS,
    Result,
    eval_seed_of,
    provenance_of,
    read_results,
    weight_hash_of,
)
from sae_variants.cli.options import parse_seeds
from sae_variants.common.errors import UsageError, check_name

NEAR_L0 = 0.15
"""Relative difference up to which `--l0` takes a row."""


def add_result_folders(parser: ArgumentParser) -> None:
    """Add the option that names the folders of results."""
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="FOLDER",
        help="Folder of results; may be repeated (default: results/published, results/baselines, results/runs)",
    )


def add_filters(parser: ArgumentParser) -> None:
    """Add the options that choose boards and rows."""
    parser.add_argument("--model", metavar="NAME", help="Only results on this language model, e.g. sandbox.")
    parser.add_argument("--evals", metavar="NAME,...", help="Only these evaluations, their columns in this order.")
    parser.add_argument("--sae", metavar="NAME,...", help="Only these SAEs, whatever their fields.")
    parser.add_argument("--d-sae", type=int, metavar="N", help="Only rows of this number of latents.")
    parser.add_argument("--l0", type=float, metavar="X", help="Only rows within 15 %% of this L0.")
    parser.add_argument("--seeds", type=parse_seeds, metavar="2,3,4", help="Only results of these training seeds.")
    parser.add_argument(
        "--recipe", action="store_true", help="Only SAEs of their target's recipe, except for L0 and width."
    )


def add_columns(parser: ArgumentParser) -> None:
    """Add the options that choose columns."""
    parser.add_argument(
        "--columns",
        metavar="KEY,...",
        help="Show these metrics, in this order, by their names in CSV files; the evaluation's name is optional.",
    )
    parser.add_argument("--complete", action="store_true", help="Only SAEs that have a number in every column shown.")


def find_boards(args: Namespace) -> tuple[list[Board], list[str]]:
    """Read results and make the boards that the options ask for.

    Returns:
        The boards; a line for every file that holds no result.

    Raises:
        UsageError: there is no such board.
    """
    results, broken = read_some(args)
    return boards_of(results, args), broken


def boards_of(results: Sequence[Result], args: Namespace) -> list[Board]:
    """Make the boards of results that the options ask for.

    Raises:
        UsageError: there is no such board.
    """
    every = make_boards(results)
    if replaced := _replaced(results, every):
        print(f"trained again: newer results of the same seed replace those of {', '.join(replaced)}", file=sys.stderr)
    _check_names(every, args)
    boards = filter_boards(every, args)
    if not boards:
        raise UsageError("no results of that kind in " + (", ".join(args.results) or "results"))
    return boards


def _replaced(results: Sequence[Result], boards: Sequence[Board]) -> list[str]:
    """SAEs of which no result is on a board, because one of other weights with the same name and seed is newer."""
    shown = {digest for board in boards for row in board.rows for digest in row.weight_hashes}
    by_seed_0 = [result for result in results if not eval_seed_of(result)]
    hidden = [result for result in by_seed_0 if (digest := weight_hash_of(result)) and digest not in shown]
    return sorted({f"{result['sae_lens_id']} (seed {provenance_of(result).get('seed')})" for result in hidden})


def read_requested(args: Namespace) -> tuple[list[Result], list[str]]:
    """Read every result of the folders that the options name; a line for every file that holds none."""
    return read_folders(folders_of(args), bool(args.results))


def read_some(args: Namespace) -> tuple[list[Result], list[str]]:
    """Read results as `read_requested` does, of which there must be some.

    Raises:
        UsageError: the folders do not exist, or hold no result.
    """
    folders = folders_of(args)
    if not args.results and not any(folder.is_dir() for folder in folders):
        raise UsageError(f"no folder {PUBLISHED.parent} in {Path.cwd()}: go to where it is, or give --results FOLDER")
    results, broken = read_requested(args)
    if not results:
        raise UsageError(f"there are no results in {', '.join(map(str, folders))}: give another --results FOLDER")
    return results, broken


def folders_of(args: Namespace) -> list[Path]:
    """Folders that the options name, or those that are read by default."""
    return [Path(folder) for folder in args.results] or [PUBLISHED, BASELINES, RUNS]


def read_folders(folders: Sequence[Path], must_exist: bool) -> tuple[list[Result], list[str]]:
    """Read every result in the folders. Files that hold none, and unknown evaluations, are printed and counted.

    Raises:
        UsageError: a folder that must exist does not.
    """
    for folder in folders:
        if must_exist and not folder.is_dir():
            raise UsageError(f"no folder {str(folder)!r}")
    results, broken = read_results(list(folders))
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {len(results) + len(broken)} are no results", file=sys.stderr)
    counts = Counter(result["eval_type_id"] for result in results)
    unknown = {name: count for name, count in counts.items() if evaluator_of_type(name) is None}
    for name, count in unknown.items():
        print(f"left out: {count} results of {name!r}, an evaluation that is not known here", file=sys.stderr)
    return [result for result in results if result["eval_type_id"] not in unknown], broken


def filter_boards(boards: Sequence[Board], args: Namespace) -> list[Board]:
    """The boards and rows that `add_filters`' options ask for."""
    if args.evals:
        types = [load_evaluator(name.strip()).result_type for name in args.evals.split(",")]
        boards = [select_evaluations(board, types) for board in boards]
    filtered = []
    for board in boards:
        if args.model and board.model != args.model:
            continue
        parts = [(row, _of_seeds(row, args.seeds)) for row in board.rows]
        rows = [part for row, part in parts if not row.results or (part.results and _is_requested(part, args))]
        if any(row.results for row in rows):
            filtered.append(replace(board, rows=rows))
    return filtered


def choose_columns(boards: Sequence[Board], args: Namespace) -> list[Board]:
    """The boards with the columns that `add_columns`' options ask for. A board that has none of them is left out.

    Raises:
        UsageError: no board has a column of that name, or it is ambiguous.
    """
    chosen = _select_keys(boards, [key.strip() for key in args.columns.split(",")]) if args.columns else list(boards)
    if not args.complete:
        return chosen
    complete = [replace(board, rows=[row for row in board.rows if _is_complete(row, board)]) for board in chosen]
    return [board for board in complete if any(row.results for row in board.rows)]


def has_l0_near(row: Row, levels: Sequence[float]) -> bool:
    """Whether a row's L0 is within 15 % of one of these."""
    return row.l0 is not None and any(abs(row.l0 - level) <= NEAR_L0 * level for level in levels)


def _check_names(boards: Sequence[Board], args: Namespace) -> None:
    """Raise UsageError, with similar names, for a model or an SAE that no result belongs to."""
    rows = [(board.model, row.name) for board in boards for row in board.rows if row.results]
    if rows and args.model:
        check_name("model", args.model, {model for model, _ in rows})
    for name in (args.sae or "").split(",") if rows else ():
        if name:
            check_name("SAE", name.strip(), {label for _, label in rows})


def _of_seeds(row: Row, seeds: Sequence[int] | None) -> Row:
    """The row with its results of these training seeds alone, if any are asked for; there may be none."""
    if not seeds:
        return row
    kept = {
        evaluation: [result for result in results if provenance_of(result).get("seed") in seeds]
        for evaluation, results in row.results.items()
    }
    return replace(row, results={evaluation: results for evaluation, results in kept.items() if results})


def _is_requested(row: Row, args: Namespace) -> bool:
    if args.sae and row.name not in [name.strip() for name in args.sae.split(",")]:
        return False
    if args.recipe and row.has_other_recipe:
        return False
    if args.d_sae and row.d_sae != args.d_sae:
        return False
    return args.l0 is None or has_l0_near(row, [args.l0])


def _is_complete(row: Row, board: Board) -> bool:
    return not row.results or all(row.number(column) is not None for column in board.shown)


def _select_keys(boards: Sequence[Board], keys: Sequence[str]) -> list[Board]:
    """Boards that show these columns, of those that have any of them."""
    keys_of = [{key for column in board.columns for key in (column.key, column.metric.key)} for board in boards]
    for key in keys:
        check_name("column", key, set().union(*keys_of))
    chosen = [[key for key in keys if key in known] for known in keys_of]
    return [select_columns(board, part) for board, part in zip(boards, chosen, strict=True) if part]
