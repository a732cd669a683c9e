"""python -m eval_runners leaderboard: results of ours, of SAEBench and of others, ranked where they are comparable.

Reads results/published, results/runs and results/baselines. Without options it prints; --markdown, --csv and --json
write tables, --html the page of `report`, --picture draws the first column over L0. --readme fills the blocks
`<!-- leaderboard OPTIONS -->`, `<!-- variants -->` and `<!-- evaluations -->` of a document, and the numbers in its
sentences, from versioned results, so that everyone gets the same; with --check it only reports whether they are up to
date. `why A B` names what separates two rows, and prints their differences over common seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from eval_runners.commands.report import render_report
from eval_runners.contract.registry import evaluator_of_type
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.compare import differences_over_seeds, find_rows, how_to_choose, why_separate
from eval_runners.leaderboard.documents import fill_blocks
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import to_csv, to_json, to_markdown
from eval_runners.leaderboard.rows import metrics_of
from eval_runners.leaderboard.select import (
    add_columns,
    add_filters,
    add_result_folders,
    boards_of,
    choose_columns,
    read_folders,
    read_some,
)
from eval_runners.leaderboard.terminal import print_boards, print_details, print_differences
from eval_runners.store.read import (
    BASELINES,
    PUBLISHED,
    Result,
    conditions_of,
    describe_differences,
    eval_seed_of,
    load_result,
    provenance_of,
    weight_hash_of,
)
from eval_runners.store.result import folder_name
from eval_runners.views.figures import check_pictures, dark_file, write_pictures
from eval_runners.views.l0_picture import FORMATS, draw_over_l0
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.files import write_atomically
from sae_variants.common.hashing import hash_value

WHY = "Print what separates two rows, and their differences, paired over the seeds that both have (Student's t-test)."


def main(argv: list[str]) -> int:
    """Run the command. Returns 1 if a file holds no result or a document is out of date."""
    if argv[:1] == ["why"]:
        return _print_why(argv[1:])
    args = _parser().parse_args(argv)
    if args.check and not args.readme:
        raise UsageError("--check goes with --readme FILE")
    if args.readme:
        folders = [Path(folder) for folder in args.results] or [PUBLISHED, BASELINES]
        results, _ = read_folders(folders, bool(args.results))
        boards = make_boards(results)
        return max([_fill(Path(file), results, boards, args.check) for file in args.readme])
    if args.picture:
        check_pictures(Path(args.picture), FORMATS, "--picture")
    results, broken = read_some(args)
    boards = choose_columns(boards_of(results, args), args)
    for file, option, render in (
        (args.markdown, "--markdown", to_markdown),
        (args.csv, "--csv", to_csv),
        (args.json, "--json", to_json),
    ):
        if file:
            write_atomically(Path(file), render(boards), option)
    if args.html:
        write_atomically(Path(args.html), render_report(boards, broken), "--html")
    if args.picture:
        _draw(Path(args.picture), boards)
    if args.baseline:
        _print_differences(boards, load_result(Path(args.baseline)), Path(args.baseline).stem)
    if args.keep:
        _keep([*_shown(boards), *_by_eval_seeds(boards, results)], Path(args.keep))
    if not any((args.baseline, args.keep, args.markdown, args.csv, args.json, args.html, args.picture)):
        print_boards(boards)
    return 1 if broken else 0


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners leaderboard", description=__doc__)
    add_result_folders(parser)
    add_filters(parser)
    add_columns(parser)
    parser.add_argument("--markdown", metavar="FILE", help="Write the tables as Markdown.")
    parser.add_argument(
        "--csv", metavar="FILE", help="Write a line per row with every metric, half of its 95 %% interval and its rank."
    )
    parser.add_argument("--json", metavar="FILE", help="Write every metric, rank, command and commit.")
    parser.add_argument("--html", metavar="FILE", help="Write the page of `report`.")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="Draw the first column over L0, a line for each SAE; of scaling, the law. For dark pages there is a "
        "second picture: headline-dark.png beside headline.png.",
    )
    parser.add_argument(
        "--readme",
        metavar="FILE",
        action="append",
        default=[],
        help="Fill the blocks of a document, and the numbers in its sentences; may be repeated.",
    )
    parser.add_argument(
        "--check", action="store_true", help="With --readme: write nothing, exit 1 if a document is out of date."
    )
    parser.add_argument("--baseline", metavar="FILE", help="A result, to print the differences of every row to.")
    parser.add_argument("--keep", metavar="FOLDER", help="Copy the results of these rows, without details per latent.")
    return parser


def _fill(file: Path, results: Sequence[Result], boards: Sequence[Board], check: bool) -> int:
    """Fill the blocks and numbers of a document. With `check`, write nothing and return 1 if that would change it."""
    text, filled = fill_blocks(file, results, boards)
    if check:
        stale = f"out of date: run make leaderboard; {_first_change(text, filled)}"
        print(f"{file}: {'up to date' if filled == text else stale}")
        return int(filled != text)
    if filled != text:
        write_atomically(file, filled, "--readme")
    return 0


def _first_change(text: str, filled: str) -> str:
    """The first word of a document that filling it changes, with its line."""
    start = next((at for at, pair in enumerate(zip(text, filled, strict=False)) if len({*pair}) > 1), 0)
    start -= len(re.split(r"\s", text[:start])[-1])
    now, then = (re.split(r"\s|<!--", part[start:], maxsplit=1)[0] for part in (text, filled))
    return f"line {text.count(chr(10), 0, start) + 1}: {now!r} is now {then!r}"


def _draw(file: Path, boards: Sequence[Board]) -> None:
    """Draw the only board: the law of `scaling`, or the first column over L0."""
    if len(boards) > 1:
        raise UsageError(f"--picture draws one board, not {len(boards)}: {how_to_choose(boards)}")
    columns = boards[0].shown
    if not columns:
        raise UsageError("--picture has nothing to draw: no column is shown; choose one with --columns")
    evaluation = columns[0].evaluation
    evaluator = evaluator_of_type(evaluation)
    assert evaluator is not None, "boards hold results of known evaluators only"
    results = [result for row in boards[0].rows for result in row.results.get(evaluation, [])]
    _, files = evaluator.summarize_all(results)
    own = [name for name in files if name.endswith(FORMATS)]
    if own:
        if not (name := next((name for name in own if name.endswith(file.suffix.lower())), None)):
            endings = ", ".join(dict.fromkeys(Path(name).suffix for name in own))
            raise UsageError(f"--picture of {evaluator.name} ends with {endings}, not {file.name!r}")
        pictures = {"light": files[name], "dark": files[dark_file(Path(name)).name]}
        return write_pictures(file, lambda page: pictures[page], "--picture")
    write_pictures(file, lambda page: draw_over_l0(file, boards[0], columns[0], page), "--picture")


def _print_differences(boards: Sequence[Board], baseline: Result, name: str) -> None:
    """Print the differences of every row to the baseline, or the conditions that make them incomparable."""
    there = conditions_of(baseline)
    evaluation = baseline["eval_type_id"]
    for board in boards:
        for row in board.rows:
            results = row.results.get(evaluation, [])
            if results and (separate := describe_differences(conditions_of(results[0]), there)):
                print(f"{row.label} cannot be compared with {name}: {'; '.join(separate)}")
            elif results:
                print_differences(metrics_of(evaluation), row.label, results, name, baseline)


def _shown(boards: Sequence[Board]) -> list[Result]:
    return [result for board in boards for row in board.rows for result in row.all_results]


def _by_eval_seeds(boards: Sequence[Board], results: Sequence[Result]) -> list[Result]:
    """Results by other evaluation seeds, of the SAEs and evaluations that are on the boards."""
    shown = {(result["eval_type_id"], weight_hash_of(result)) for result in _shown(boards)}
    return [r for r in results if eval_seed_of(r) and (r["eval_type_id"], weight_hash_of(r)) in shown]


def _keep(results: Sequence[Result], folder: Path) -> None:
    """Copy results to their paths below a folder, without details per latent and per task."""
    for result in results:
        provenance = provenance_of(result)
        if not provenance:
            continue
        evaluator = evaluator_of_type(result["eval_type_id"])
        assert evaluator is not None, "boards hold results of known evaluators only"
        slim = {**result, "eval_result_details": []}
        name = folder_name(str(result["sae_lens_id"]))
        conditions = conditions_of(result)
        for key, default in (("evaluator_version", 1), ("eval_seed", 0)):
            if conditions[key] == default:
                del conditions[key]  # so that files kept before there were such conditions keep their names
        digest = hash_value([provenance["weight_hash"], conditions])
        file = folder / provenance["target"] / evaluator.name / name / f"{digest}.json"
        write_atomically(file, json.dumps(slim) + "\n", "--keep")


def _print_why(argv: list[str]) -> int:
    parser = Parser(prog="python -m eval_runners leaderboard why", description=WHY)
    add_result_folders(parser)
    parser.add_argument("one", help="An SAE as the table names it; MODEL/SAE if several language models have it.")
    parser.add_argument("other")
    args = parser.parse_args(argv)
    boards = make_boards(read_some(args)[0])
    if args.one == args.other:
        raise UsageError(f"{args.one} and {args.other} are one row")
    rows, others = (find_rows(boards, name) for name in (args.one, args.other))
    pairs = ((a, b) for a in rows for b in others if a[0] is b[0] and a[1] is not b[1])
    here, there = next(pairs, (rows[0], others[-1]))
    if here[1] is there[1]:
        raise UsageError(f"{args.one} and {args.other} are one row")
    for line in why_separate(*here, *there) or ["nothing: they are ranked together"]:
        print(line)
    if here[0] is there[0] and (differences := list(differences_over_seeds(*here, there[1]))):
        title = "paired over seeds: mean ± half of its 95 % interval; p uncorrected"
        print_details(f"{here[1].label} minus {there[1].label}, {title}", differences)
    return 0
