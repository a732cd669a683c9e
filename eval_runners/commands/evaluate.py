"""python -m eval_runners.EVALUATION: score SAEs by one evaluator, and print a table of its metrics."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Evaluator, Result
from eval_runners.contract.registry import evaluator_modules, load_evaluator
from eval_runners.harness.cells import cells_of
from eval_runners.harness.find_sae import SAERequest, check_requests, locate_requests, resolve_requests
from eval_runners.harness.options import TRAIN_PREFIX, add_scoring_options, parse_with_overrides
from eval_runners.harness.score import (
    Scored,
    Scoring,
    check_supported,
    prepare_scoring,
    snapshot_shares,
)
from eval_runners.harness.score_many import report_failures, score_all
from eval_runners.harness.target_model import model_loader
from eval_runners.leaderboard.boards import comparable_rows
from eval_runners.leaderboard.terminal import print_details, print_differences, print_metrics, write_csv
from eval_runners.store.read import PUBLISHED, conditions_of, describe_differences, load_result, read_results
from sae_variants.cli.fields import add_fields, given_fields
from sae_variants.cli.options import Parser, device_from, targets_from
from sae_variants.common.console import hide_host_warnings, run_command
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, check_folder_writable, write_atomically
from sae_variants.language_model.contexts import heldout_text_name
from sae_variants.launch.options import add_launch_options, launch_of, without_launch_options
from sae_variants.launch.share import share_work
from sae_variants.training.grid import grid_fields, parse_grid

REQUIRED = ("dataset_names", "k_values", "ks", "context_length", "context_size")
"""Settings that a baseline must hold, where the evaluator has them, beside the model."""


def run_evaluator(file: str) -> None:
    """Entry point of `python -m eval_runners.NAME`.

    Args:
        file: the evaluator's `__file__`; its stem is the evaluator's name.
    """
    run_command(lambda: main(Path(file).stem, sys.argv[1:]))


def main(name: str, argv: list[str]) -> int:
    """Run the command of one evaluator.

    Returns:
        0 if every SAE has a result and is trained, else 1.

    Raises:
        UsageError: input that cannot work; raised before any SAE is trained wherever that is possible.
    """
    evaluator, module = load_evaluator(name), evaluator_modules()[name]
    module_args = [module] if module == f"eval_runners.{name}" else ["eval_runners", name]
    args, overrides = parse_with_overrides(_parser(evaluator, module_args), argv)
    hide_host_warnings()
    targets, output = targets_from(args), Path(args.output)
    if args.csv:
        check_file_writable(Path(args.csv), "--csv")
    launch, argv = launch_of(args), without_launch_options(argv)
    given, command = given_fields(args, evaluator.settings_class), ["python", "-m", *module_args, *argv]
    grid_points, names = parse_grid(args.grid, args.vary), list(dict.fromkeys(args.saes))
    for target in targets:
        check_requests(names, target, overrides, grid_points, args.seeds)
    scorings = [prepare_scoring(name, target, given, output, command) for target in targets]
    baseline = _baseline(args.baseline, scorings[0]) if args.baseline is not None else None
    device = device_from(args)
    all_requests = [
        resolve_requests(names, target, overrides, grid_points, args.seeds, args.trained) for target in targets
    ]
    check_training_options(overrides, args, all_requests)
    for scoring, requests in zip(scorings, all_requests, strict=True):
        check_supported([scoring], requests)
    check_folder_writable(output)
    if launch and not share_work(launch, "eval_runners", [name, *argv], output, cells_of(scorings, all_requests)):
        return 0
    scored: list[Scored] = []
    failures: list[str] = []
    for scoring, requests in zip(scorings, all_requests, strict=True):
        axes, shares = grid_fields(grid_points), snapshot_shares([scoring])
        located, untrainable = locate_requests(requests, device, axes, shares)
        of_target, unscored, _ = score_all([scoring], located, model_loader(scoring.target, device), device, args.force)
        if of_target:
            _print_tables(scoring, of_target, args, baseline)
        scored += of_target
        failures += [*untrainable, *unscored]
    if scored and args.csv:
        write_csv(Path(args.csv), scored)
    show_summaries(scorings, [result for _, result in scored])
    return report_failures(scored, failures)


def check_training_options(
    overrides: Mapping[str, Any], args: Namespace, all_requests: Sequence[Sequence[SAERequest]]
) -> None:
    """Raise a UsageError for options of a training where no SAE is one that this package trains."""
    options = [f"--{TRAIN_PREFIX}{field.replace('_', '-')}" for field in overrides]
    options += [option for option, given in (("--grid", args.grid), ("--vary", args.vary)) if given]
    if options and not any(request.plan for requests in all_requests for request in requests):
        names = ", ".join(dict.fromkeys(args.saes))
        raise UsageError(f"{', '.join(options)} would do nothing: {names} is trained already, so leave it out")


def _parser(evaluator: Evaluator, module_args: Sequence[str]) -> Parser:
    description = sys.modules[type(evaluator).__module__].__doc__
    parser = Parser(prog=f"python -m {' '.join(module_args)}", description=description)
    parser.add_argument("--baseline", metavar="FILE", help="A result file of SAEBench, to print the differences to.")
    if evaluator.detail:
        parser.add_argument("--details", action="store_true", help=f"Print a row for every {evaluator.detail}.")
    parser.add_argument("--csv", metavar="FILE", help="Write a row per SAE and seed, with a column per metric.")
    add_scoring_options(parser)
    add_launch_options(parser)
    if evaluator.default_target:
        parser.set_defaults(target=evaluator.default_target)
    add_fields(parser, evaluator.settings_class, "evaluation (the target's recipe replaces defaults)")
    return parser


def _print_tables(scoring: Scoring, scored: Sequence[Scored], args: Namespace, baseline: Result | None) -> None:
    """Print the requested rows beside stored rows that are comparable, then the summary of each result."""
    evaluator, location = scoring.evaluator, scoring.location
    columns: dict[str, list[Result]] = {}
    for located, result in scored:
        columns.setdefault(located.label, []).append(result)
    folders = [root / location.target.name / location.evaluation for root in (location.root, PUBLISHED)]
    stored, broken = read_results(folders)
    for reason in broken:
        print(f"left out of the table: {reason}", file=sys.stderr)
    comparable = comparable_rows([result for _, result in scored], stored)
    stored_columns = {row.label: row.all_results for row in comparable if row.label not in columns}
    print_metrics(evaluator.metrics, {**columns, **stored_columns})
    for located, result in scored:
        for line in evaluator.summary_lines(result):
            print(f"{located.title}: {line}")
        if getattr(args, "details", False):
            print_details(located.title, evaluator.detail_rows(result))
    if baseline is not None:
        for label, results in columns.items():
            print_differences(evaluator.metrics, label, results, Path(args.baseline).stem, baseline)


def show_summaries(scorings: Sequence[Scoring], results: Sequence[Result]) -> None:
    """Print the summary of all results of one evaluator, and write the files that belong to it."""
    if not results:
        return
    lines, files = scorings[0].evaluator.summarize_all(results)
    location = scorings[0].location
    folder = location.root / "+".join(scoring.target.name for scoring in scorings) / location.evaluation
    for line in lines:
        print(line)
    for name, content in files.items():
        write_atomically(folder / name, content, "--output")
        print(folder / name)


def _baseline(file: str, scoring: Scoring) -> Result:
    """Load a result to compare with.

    Raises:
        UsageError: the file is no result, or a result under other conditions.
    """
    baseline, target = load_result(Path(file)), scoring.target
    planned = {
        **asdict(scoring.settings),
        "evaluation": scoring.evaluator.result_type,
        "model_name": target.model_name,
        "hook_name": target.hook_name,
        "llm_dtype": target.dtype,
        "dataset": heldout_text_name(target),
        "documents": dict(scoring.location.versions) or None,
        "evaluator_version": scoring.evaluator.version,
        "eval_seed": 0,
    }
    conditions = conditions_of(baseline)
    if differences := describe_differences(planned, conditions):
        raise UsageError(f"cannot compare with {file}: {'; '.join(differences)}")
    if missing := [key for key in ("model_name", *REQUIRED) if key in planned and conditions.get(key) is None]:
        raise UsageError(f"cannot compare with {file}: it does not name its {', '.join(missing)}")
    return baseline
