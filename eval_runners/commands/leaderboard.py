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
from pathlib import Path

from eval_runners.contract.registry import evaluator_of_type
from eval_runners.leaderboard.boards import Board, make_boards
from eval_runners.leaderboard.compare import find_rows, why_separate
from eval_runners.leaderboard.render import to_csv, to_json, to_markdown
from eval_runners.leaderboard.rows import metrics_of
from eval_runners.leaderboard.select import (
    add_filters,
    add_result_folders,
    filter_boards,
    find_boards,
    read_folders,
    read_requested,
)
from eval_runners.leaderboard.terminal import print_boards, print_differences
from eval_runners.store.paths import folder_name
from eval_runners.store.read import (
    BASELINES,
    PUBLISHED,
    Result,
    conditions_of,
    describe_differences,
    load_result,
    provenance_of,
)
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.files import write_atomically
from sae_variants.common.hashing import hash_value

BLOCK = re.compile(r"(<!-- leaderboard(?P<options>[^>]*)-->\n).*?(<!-- /leaderboard -->)", re.DOTALL)


def main(argv: list[str]) -> int:
    if argv[:1] == ["why"]:
        return _why(argv[1:])
    parser = Parser(prog="python -m eval_runners leaderboard", description=__doc__)
    add_result_folders(parser)
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
        results, _ = read_folders(
            [Path(folder) for folder in args.results] or [PUBLISHED, BASELINES], bool(args.results)
        )
        return max(fill(Path(file), results, args.check) for file in args.readme)
    boards, broken = find_boards(args)
    for file, option, text in (
        (args.markdown, "--markdown", to_markdown), (args.csv, "--csv", to_csv),
        (args.json, "--json", to_json),
    ):  # fmt: skip
        if file:
            write_atomically(Path(file), text(boards), option)
    if args.baseline:
        _differences(boards, load_result(Path(args.baseline)), Path(args.baseline).stem)
    if args.keep:
        _keep(boards, Path(args.keep))
    if not (args.baseline or args.keep or args.markdown or args.csv or args.json):
        print_boards(boards)
    return 1 if broken else 0


def fill(file: Path, results: list[Result], check: bool) -> int:
    """The tables of a file between its markers made anew; with `check`, 1 if that would change them."""
    try:
        text = file.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if not BLOCK.search(text):
        raise UsageError(f"{file} has no table: it has no <!-- leaderboard --> ... <!-- /leaderboard -->")
    boards = make_boards(results)
    parser = Parser(prog=f"leaderboard in {file}")
    add_filters(parser)
    parser.add_argument("--legend", action="store_true", help="say what bold and marks mean")

    def made(match: re.Match[str]) -> str:
        args = parser.parse_args(shlex.split(match["options"]))
        table = to_markdown(filter_boards(boards, args), args.legend)
        return f"{match[1]}\n{table}\n{match[3]}"

    new = BLOCK.sub(made, text)
    if check:
        print(f"{file}: {'up to date' if new == text else 'out of date: run make leaderboard'}")
        return int(new != text)
    if new != text:
        write_atomically(file, new, "--readme")
    return 0


def _differences(boards: list[Board], baseline: Result, name: str) -> None:
    """Every row against the baseline, where they were made under the same conditions; else what separates them."""
    there = conditions_of(baseline)
    evaluation = baseline["eval_type_id"]
    for board in boards:
        for row in board.rows:
            results = row.results.get(evaluation, [])
            if results and (separate := describe_differences(conditions_of(results[0]), there)):
                print(f"{row.label} cannot be compared with {name}: {'; '.join(separate)}")
            elif results:
                print_differences(metrics_of(evaluation), row.label, results, name, baseline)


def _keep(boards: list[Board], folder: Path) -> None:
    """Copies of the results, at their place in the tree, without what there is of every latent and every task."""
    for result in (result for board in boards for row in board.rows for result in row.all_results):
        said = provenance_of(result)
        if not said:
            continue
        evaluator = evaluator_of_type(result["eval_type_id"])
        assert evaluator is not None, "boards hold results of known evaluators only"
        slim = {**result, "eval_result_details": []}
        name = folder_name(str(result["sae_lens_id"]))
        digest = hash_value([said["weight_hash"], conditions_of(result)])
        place = folder / said["target"] / evaluator.name / name / f"{digest}.json"
        write_atomically(place, json.dumps(slim) + "\n", "--keep")


def _why(argv: list[str]) -> int:
    parser = Parser(prog="python -m eval_runners leaderboard why", description="What separates two rows.")
    add_result_folders(parser)
    parser.add_argument("one", help="an SAE as the table names it; with its model, MODEL/SAE, if several have it")
    parser.add_argument("other")
    args = parser.parse_args(argv)
    boards = make_boards(read_requested(args)[0])
    one, other = (find_rows(boards, name) for name in (args.one, args.other))
    here, there = next(((a, b) for a in one for b in other if a[0] is b[0] and a[1] is not b[1]), (one[0], other[-1]))
    if here[1] is there[1]:
        raise UsageError(f"{args.one} and {args.other} are one row")
    for line in why_separate(*here, *there) or ["nothing: they are ranked together"]:
        print(line)
    return 0
