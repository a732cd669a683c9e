"""python -m eval_runners leaderboard: results of ours, of SAEBench and of others, ranked where they may be.

Reads results/published, results/runs and results/baselines. Without options it prints; --markdown, --csv and --json
write files; --readme fills the tables between `<!-- leaderboard OPTIONS -->` and `<!-- /leaderboard -->` from versioned
results alone, so that everyone gets the same, and with --check only says whether they are up to date. `why A B` names
what separates two rows.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_runners.contract import contract as _contract
from eval_runners.leaderboard import boards as _boards
from eval_runners.leaderboard import render as _render
from eval_runners.leaderboard import rows as _rows
from eval_runners.leaderboard import terminal as _table
from eval_runners.leaderboard.boards import Board
from eval_runners.leaderboard.rows import Row
from eval_runners.store import read as _read
from eval_runners.store import result as _result
from eval_runners.store.read import BASELINES, PUBLISHED, RUNS, Result
from sae_variants.cli import options as _cli
from sae_variants.common import hashing as _hash
from sae_variants.common.errors import UsageError, one_of
from sae_variants.common.files import write_whole

BLOCK = re.compile(r"(<!-- leaderboard(?P<options>[^>]*)-->\n).*?(<!-- /leaderboard -->)", re.DOTALL)


def main(argv: list[str]) -> int:
    if argv[:1] == ["why"]:
        return _why(argv[1:])
    parser = _cli.Parser(prog="python -m eval_runners leaderboard", description=__doc__)
    add_folders(parser)
    add_filters(parser)
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument(
        "--readme", metavar="FILE", action="append", default=[], help="fill the tables in it; may be repeated"
    )
    parser.add_argument(
        "--check", action="store_true", help="with --readme: write nothing, exit 1 if it is out of date"
    )
    parser.add_argument("--baseline", metavar="FILE", help="a result, to print the differences of every row to")
    parser.add_argument("--keep", metavar="FOLDER", help="copy the results of these rows, without details per latent")
    args = parser.parse_args(argv)
    if args.check and not args.readme:
        raise UsageError("--check goes with --readme FILE")
    if args.readme:
        results, _ = _all([Path(folder) for folder in args.results] or [PUBLISHED, BASELINES], bool(args.results))
        return max(fill(Path(file), results, args.check) for file in args.readme)
    boards, broken = found(args)
    for file, option, text in (
        (args.markdown, "--markdown", _render.as_markdown), (args.csv, "--csv", _render.as_csv),
        (args.json, "--json", _render.as_json),
    ):  # fmt: skip
        if file:
            write_whole(Path(file), text(boards), option)
    if args.baseline:
        _differences(boards, _read.load(Path(args.baseline)), Path(args.baseline).stem)
    if args.keep:
        _keep(boards, Path(args.keep))
    if not (args.baseline or args.keep or args.markdown or args.csv or args.json):
        _render.show(boards)
    return 1 if broken else 0


def found(args: Any) -> tuple[list[Board], list[str]]:
    """The boards that a command's options ask for, and the files that are no results. UsageError if there is none."""
    results, broken = read(args)
    every = _boards.boards(results)
    _check_names(every, args)
    boards = _filtered(every, args)
    if not boards:
        raise UsageError("no results of that kind in " + (", ".join(args.results) or "results"))
    return boards, broken


def read(args: Any) -> tuple[list[Result], list[str]]:
    """Every result that a command's options ask for, and the files that are none."""
    return _all([Path(folder) for folder in args.results] or [PUBLISHED, BASELINES, RUNS], bool(args.results))


def add_folders(parser: Any) -> None:
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


def _all(folders: list[Path], asked: bool) -> tuple[list[Result], list[str]]:
    """Every result in the folders; files that are none are named and counted."""
    for folder in folders:
        if asked and not folder.is_dir():
            raise UsageError(f"no folder {str(folder)!r}")
    results, broken = _read.tree(folders)
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {len(results) + len(broken)} are no results", file=sys.stderr)
    types = Counter(result["eval_type_id"] for result in results)
    unknown = {name: number for name, number in types.items() if _contract.of_type(name) not in _contract.names()}
    for name, number in unknown.items():
        print(f"left out: {number} results of {name!r}, an evaluation that is not known here", file=sys.stderr)
    return [result for result in results if result["eval_type_id"] not in unknown], broken


def _check_names(boards: list[Board], args: Any) -> None:
    """UsageError, with the near names, for a model or an SAE that no result is of."""
    rows = [(board.model, row.name) for board in boards for row in board.rows if row.results]
    if rows and args.model:
        one_of("model", args.model, {model for model, _ in rows})
    for name in (args.sae or "").split(",") if rows else ():
        if name:
            one_of("SAE", name.strip(), {label for _, label in rows})


def _filtered(boards: list[Board], args: Any) -> list[Board]:
    if args.evals:
        types = [_contract.eval_type(_contract.module(name.strip())) for name in args.evals.split(",")]
        boards = [_boards.narrowed(board, types) for board in boards]
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
    return args.l0 is None or is_near(row, [args.l0])


def is_near(row: Row, levels: list[float]) -> bool:
    """Whether a row's L0 is within 15 % of one of these."""
    return row.l0 is not None and any(abs(row.l0 - level) <= 0.15 * level for level in levels)


def fill(file: Path, results: list[Result], check: bool) -> int:
    """The tables of a file between its markers made anew; with `check`, 1 if that would change them."""
    try:
        text = file.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if not BLOCK.search(text):
        raise UsageError(f"{file} has no table: it has no <!-- leaderboard --> ... <!-- /leaderboard -->")
    boards = _boards.boards(results)
    parser = _cli.Parser(prog=f"leaderboard in {file}")
    add_filters(parser)
    parser.add_argument("--legend", action="store_true", help="say what bold and marks mean")

    def made(match: re.Match[str]) -> str:
        args = parser.parse_args(shlex.split(match["options"]))
        table = _render.as_markdown(_filtered(boards, args), args.legend)
        return f"{match[1]}\n{table}\n{match[3]}"

    new = BLOCK.sub(made, text)
    if check:
        print(f"{file}: {'up to date' if new == text else 'out of date: run make leaderboard'}")
        return int(new != text)
    if new != text:
        write_whole(file, new, "--readme")
    return 0


def _differences(boards: list[Board], baseline: Result, name: str) -> None:
    """Every row against the baseline, where they were made under the same conditions; else what separates them."""
    there = _read.conditions(baseline)
    evaluation = baseline["eval_type_id"]
    for board in boards:
        for row in board.rows:
            results = row.results.get(evaluation, [])
            if results and (separate := _read.differing(_read.conditions(results[0]), there)):
                print(f"{row.label} cannot be compared with {name}: {'; '.join(separate)}")
            elif results:
                _table.print_differences(_rows.module(evaluation).METRICS, row.label, results, name, baseline)


def _keep(boards: list[Board], folder: Path) -> None:
    """Copies of the results, at their place in the tree, without what there is of every latent and every task."""
    for result in (result for board in boards for row in board.rows for result in row.all_results):
        said = _read.provenance(result)
        if not said:
            continue
        slim = {**result, "eval_result_details": []}
        name = _result.path_name(str(result["sae_lens_id"]))
        digest = _hash.of_value([said["weight_hash"], _read.conditions(result)])
        place = folder / said["target"] / _contract.of_type(result["eval_type_id"]) / name / f"{digest}.json"
        write_whole(place, json.dumps(slim) + "\n", "--keep")


def _why(argv: list[str]) -> int:
    parser = _cli.Parser(prog="python -m eval_runners leaderboard why", description="What separates two rows.")
    add_folders(parser)
    parser.add_argument("one", help="an SAE as the table names it; with its model, MODEL/SAE, if several have it")
    parser.add_argument("other")
    args = parser.parse_args(argv)
    boards = _boards.boards(read(args)[0])
    one, other = (_places(boards, name) for name in (args.one, args.other))
    here, there = next(((a, b) for a in one for b in other if a[0] is b[0] and a[1] is not b[1]), (one[0], other[-1]))
    if here[1] is there[1]:
        raise UsageError(f"{args.one} and {args.other} are one row")
    for line in separating(*here, *there) or ["nothing: they are ranked together"]:
        print(line)
    return 0


def _places(boards: list[Board], name: str) -> list[tuple[Board, Row]]:
    every = [(board, row) for board in boards for row in board.rows if row.results]
    places = [(board, row) for board, row in every if name in (row.label, f"{board.model}/{row.label}")]
    if not places:
        near = {row.label for _, row in every if row.name == name.partition("[")[0]}
        one_of("row", name, near or {row.name for _, row in every})
    return places


def _fields(row: Row, other: Row) -> dict[str, tuple[Any, Any]]:
    """What two SAEs of one name were trained with, by field; nothing of SAEs that do not say."""
    if row.name != other.name:
        return {}
    here, there = (_rows.trained_with(one.all_results[0]) for one in (row, other))
    return {field: (here[field], there[field]) for field in here if field in there}


def separating(board: Board, row: Row, other_board: Board, other: Row) -> list[str]:
    """In words, why two rows are not ranked together, or are only in part."""
    lines = [
        f"{what} is {a} for {row.label} and {b} for {other.label}"
        for what, a, b in (
            ("language model", board.model, other_board.model),
            ("hook", board.hook_name, other_board.hook_name),
            ("d_sae", row.d_sae, other.d_sae),
            ("number of training tokens", row.training_tokens, other.training_tokens),
        )
        if a != b
    ]
    lines += [
        f"{field} is {a} for {row.label} and {b} for {other.label}"
        for field, (a, b) in _fields(row, other).items()
        if a != b
    ]
    matched = board is other_board and other in board.group(row)
    levels = sorted(one.l0 for one in (row, other) if one.l0)
    if not matched and len(levels) == 2 and (not lines or levels[1] > _boards.SAME_L0 * levels[0]):
        lines.append(f"L0 is {row.l0:.1f} for {row.label} and {other.l0:.1f} for {other.label}: matched is within 10 %")
    lines += [f"L0 of {one.label} is not known" for one in (row, other) if one.l0 is None]
    lines += [f"{one.label} is untrained: {'; '.join(one.untrained)}" for one in (row, other) if one.untrained]
    for evaluation in dict.fromkeys([*row.results, *other.results]):
        missing = [one.label for one in (row, other) if evaluation not in one.results]
        if missing:
            lines.append(f"{evaluation} was not run for {', '.join(missing)}")
            continue
        here, there = (_read.conditions(one.results[evaluation][0]) for one in (row, other))
        lines += [f"{evaluation}: {difference}" for difference in _read.differing(here, there)]
    lines += [f"{one.label} has one seed, so no interval" for one in (row, other) if len(one.seeds) < 2]
    return lines
