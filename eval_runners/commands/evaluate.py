"""resolve -> evaluate -> validate -> write -> print, the same for every evaluation."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Untrained
from eval_runners.contract.registry import evaluator_modules, load_evaluator
from eval_runners.harness.options import TRAIN_PREFIX, add_scoring_options
from eval_runners.harness.score import (
    Scoring,
    check_supported,
    exit_code,
    model_loader,
    prepare_scoring,
    score_sae,
    snapshot_shares,
    with_titles,
)
from eval_runners.leaderboard.boards import comparable_rows
from eval_runners.leaderboard.terminal import print_details, print_differences, print_metrics, write_csv
from eval_runners.store.read import PUBLISHED, Result, conditions_of, describe_differences, load_result, read_results
from sae_variants.cli.fields import add_fields, given_fields
from sae_variants.cli.options import (
    Parser,
    device_from,
    parse_extra_options,
    split_unknown_options,
    targets_from,
)
from sae_variants.common.console import hide_host_warnings, run_command
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, check_folder_writable, write_atomically
from sae_variants.training.grid import grid_fields, parse_grid

if TYPE_CHECKING:
    from eval_runners.harness.find_sae import LocatedSAE

NEEDED = ("dataset_names", "k_values", "ks", "context_length", "context_size")
"""Settings that a baseline must name, where the evaluation has them, beside the model."""


def run_evaluator(name: str) -> None:
    """Entry point of `python -m eval_runners.<name>`."""
    run_command(lambda: main(name, sys.argv[1:]))


def main(name: str, argv: list[str]) -> int:
    from eval_runners.harness.find_sae import resolve_requests, train_missing

    evaluator = load_evaluator(name)
    is_own = evaluator_modules()[name] == f"eval_runners.{name}"
    words_of_it = [f"eval_runners.{name}"] if is_own else ["eval_runners", name]
    parser = Parser(prog=f"python -m {' '.join(words_of_it)}", description=evaluator.__doc__)
    parser.add_argument("--baseline", metavar="FILE", help="a result of SAEBench's, to print the differences to")
    if hasattr(evaluator, "details"):
        parser.add_argument("--details", action="store_true", help="print a row for every task")
    parser.add_argument("--csv", metavar="FILE", help="write a row per SAE and seed, a column per metric")
    add_scoring_options(parser)
    add_fields(parser, evaluator.EvalConfig, "evaluation (defaults are the target's where it has its own)")
    words, extra = split_unknown_options(parser, argv)
    args = parser.parse_args(words)
    overrides = parse_extra_options(extra, prefix=TRAIN_PREFIX)
    hide_host_warnings()
    targets, device = targets_from(args), device_from(args)
    command = ["python", "-m", *words_of_it, *argv]
    if args.csv:
        check_file_writable(Path(args.csv), "--csv")
    given, output = given_fields(args, evaluator.EvalConfig), Path(args.output)
    scorings = [prepare_scoring(name, target, given, output, device, command) for target in targets]
    baseline = _baseline(args.baseline, scorings[0]) if args.baseline is not None else None
    check_folder_writable(output)
    cells = parse_grid(args.grid, args.vary)
    names = list(dict.fromkeys(args.saes))
    wanted = [resolve_requests(names, target, overrides, cells, args.seeds, args.trained) for target in targets]
    for scoring, saes in zip(scorings, wanted, strict=True):
        check_supported(scoring, saes)
    every: list[tuple[LocatedSAE, Result]] = []
    failures: list[str] = []
    for scoring, saes in zip(scorings, wanted, strict=True):
        found, failed = train_missing(saes, grid_fields(cells), device, snapshot_shares([scoring]))
        model = model_loader(scoring.target, device)
        results: list[tuple[LocatedSAE, Result]] = []
        for title, sae_found in with_titles(found):
            try:
                results.append((sae_found, score_sae(scoring, sae_found, title, model, args.force)))
            except Untrained as error:
                failed.append(f"{title}: untrained: {error}; there is no result")
        if results:
            _show(scoring, results, args, baseline)
        failures += failed
        every += results
    if every and args.csv:
        write_csv(Path(args.csv), every)
    show_summaries(scorings, [result for _, result in every])
    return exit_code(every, failures)


def _show(scoring: Scoring, results: list[tuple[LocatedSAE, Result]], args: Any, baseline: Any) -> None:
    """The table of what was asked for, beside what lies there already and was made under the same conditions."""
    evaluator, place = scoring.evaluator, scoring.place
    columns: dict[str, list[Result]] = {}
    for found, result in results:
        columns.setdefault(found.label, []).append(result)
    here = [root / place.target.name / place.evaluation for root in (place.root, PUBLISHED)]
    lying, broken = read_results(here)
    for reason in broken:
        print(f"left out of the table: {reason}", file=sys.stderr)
    others = comparable_rows([result for _, result in results], lying)
    shown = {row.label: row.all_results for row in others if row.label not in columns}
    print_metrics(evaluator.METRICS, {**columns, **shown})
    for label, same in columns.items():
        for result in same:
            seed = result["eval_result_unstructured"]["provenance"]["seed"]
            title = label if seed is None else f"{label}, seed {seed}"
            for line in evaluator.words(result) if hasattr(evaluator, "words") else []:
                print(f"{title}: {line}")
            if getattr(args, "details", False):
                print_details(title, evaluator.details(result))
        if baseline is not None:
            print_differences(evaluator.METRICS, label, same, Path(args.baseline).stem, baseline)


def show_summaries(scorings: list[Scoring], results: list[Result]) -> None:
    """Prints, and writes beside the results, what they say together, if the evaluation has something to say."""
    scoring = scorings[0]
    if not results or not hasattr(scoring.evaluator, "across"):
        return
    lines, files = scoring.evaluator.across(results)
    folder = scoring.place.root / "+".join(one.target.name for one in scorings) / scoring.name
    for line in lines:
        print(line)
    for name, content in files.items():
        write_atomically(folder / name, content, "--output")
        print(folder / name)


def _baseline(file: str, scoring: Scoring) -> Result:
    """A result to compare with. UsageError, before any work, if it was made under other conditions."""
    from sae_variants.language_model.contexts import heldout_text_name

    baseline, target = load_result(Path(file)), scoring.target
    own = next(f.default for f in fields(scoring.evaluator.output_class()) if f.name == "eval_type_id")
    planned = {
        "evaluation": getattr(own, "default", own),  # a value, or pydantic's field with it
        "model_name": target.model_name,
        "hook_name": target.hook_name,
        "llm_dtype": target.dtype,
        "dataset": heldout_text_name(target),
        "documents": scoring.place.versions or None,
        **asdict(scoring.config),
    }
    there = conditions_of(baseline)
    if separate := describe_differences(planned, there):
        raise UsageError(f"cannot compare with {file}: {'; '.join(separate)}")
    if unnamed := [key for key in ("model_name", *NEEDED) if key in planned and there.get(key) is None]:
        raise UsageError(f"cannot compare with {file}: it does not say its {', '.join(unnamed)}")
    return baseline
