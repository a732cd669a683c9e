"""python -m eval_runners suite: several SAEs, seeds and evaluations in one go, and one table of them all.

Trains what is missing, in as few streams as fit, then scores cell by cell. Finished cells are found again, so the same
command goes on after an interruption. A cell that fails is named at the end, with its error, while the others finish.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from eval_runners.commands.evaluate import show_summaries
from eval_runners.contract.contract import USUAL_EVALUATIONS, Untrained
from eval_runners.contract.registry import evaluator_name_of_type, evaluator_names, load_evaluator
from eval_runners.harness.options import add_scoring_options
from eval_runners.harness.score import (
    Scoring,
    exit_code,
    model_loader,
    prepare_scoring,
    score_sae,
    snapshot_shares,
    with_titles,
)
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.terminal import print_boards, write_csv
from eval_runners.views.grid_picture import check_picture, draw_grid
from sae_variants.cli.fields import add_fields, given_fields
from sae_variants.cli.options import Parser, device_from, parse_extra_options, split_unknown_options, target_from
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.files import check_file_writable, check_folder_writable
from sae_variants.language_model.target import Target
from sae_variants.registry.variants import find_variant, scorable_names
from sae_variants.training.grid import GridPoint, grid_fields, parse_grid
from sae_variants.training.plan import applicable_overrides, check_overrides


def main(argv: list[str]) -> int:
    from eval_runners.harness.find_sae import train_missing

    parser = Parser(prog="python -m eval_runners suite", description=__doc__)
    parser.add_argument(
        "--evals",
        default=",".join(USUAL_EVALUATIONS),
        metavar="NAME,...",
        help="evaluations, parted by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--l0", metavar="16,32,64",
        help="train every SAE for each L0: k, or where there is no k the coefficient that the target knows for it",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the table's rows, a column per metric")
    parser.add_argument("--picture", metavar="FILE", help="draw the --grid: every metric of the table over its fields")
    add_scoring_options(parser)
    parser.epilog = f"{parser.epilog} Settings of an evaluation: --EVALUATION.FIELD VALUE, e.g. --core.context-size 64."
    words, extra = split_unknown_options(parser, argv)
    args = parser.parse_args(words)
    evaluations = _evaluations(args.evals)
    if args.picture:
        check_picture(Path(args.picture), args.grid)
    for file, option in ((args.csv, "--csv"), (args.picture, "--picture")):
        if file:
            check_file_writable(Path(file), option)
    overrides, settings = _split_options(extra, evaluations)
    hide_host_warnings()
    target, device = target_from(args), device_from(args)
    output = Path(args.output)
    command = ["python", "-m", "eval_runners", "suite", *argv]
    scorings = [prepare_scoring(name, target, settings[name], output, device, command) for name in evaluations]
    cells = parse_grid(args.grid, args.vary)
    wanted = _requests(args, target, overrides, cells)
    check_folder_writable(output)
    found, failures = train_missing(wanted, grid_fields(cells), device, snapshot_shares(scorings))
    scored = _score_all(scorings, found, args.force, model_loader(target, device), failures)
    if scored:
        print_boards(make_boards([result for _, result in scored]))
        for scoring in scorings:
            own = [result for _, result in scored if evaluator_name_of_type(result["eval_type_id"]) == scoring.name]
            show_summaries([scoring], own)
        if args.csv:
            write_csv(Path(args.csv), scored)
        if args.picture:
            draw_grid(Path(args.picture), scored, grid_fields(cells))
    return exit_code(scored, failures)


def _evaluations(text: str) -> list[str]:
    wanted = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not wanted:
        raise UsageError("--evals names no evaluation")
    for name in wanted:
        check_name("evaluation", name, evaluator_names())
    return wanted


def _split_options(extra: list[str], evaluations: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options of training, and of each evaluation, from `--train.FIELD` and `--EVALUATION.FIELD`."""
    parts: dict[str, list[str]] = {"train": [], **{name: [] for name in evaluations}}
    words = list(extra)
    while words:
        word = words.pop(0)
        owner = word.removeprefix("--").partition(".")[0].replace("-", "_")
        if not word.startswith("--") or owner not in parts or "." not in word:
            raise UsageError(f"unknown option or argument {word!r} (see python -m eval_runners suite --help)")
        rest = ["--" + word.partition(".")[2]]
        if "=" not in word and words and not words[0].startswith("--"):
            rest.append(words.pop(0))
        parts[owner] += rest
    settings = {}
    for name in evaluations:
        config_class = load_evaluator(name).EvalConfig
        parser = Parser(prog=f"python -m eval_runners.{name}")
        add_fields(parser, config_class, "evaluation")
        settings[name] = given_fields(parser.parse_args(parts[name]), config_class)
    return parse_extra_options(parts["train"]), settings


def _parse_l0(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--l0 is a list of numbers like 16,32,64, not {text!r}") from error
    if min(found) <= 0:
        raise UsageError("--l0 must be positive")
    return list(dict.fromkeys(found))


def _requests(args: Any, target: Target, overrides: dict[str, Any], cells: list[GridPoint]) -> list[Any]:
    """Plans, or names of places, of every SAE for every cell, L0 and seed.

    Raises:
        UsageError: an unknown name or field, or an SAE without k whose coefficient for an L0 the target does not know.
    """
    from eval_runners.harness.find_sae import resolve_requests

    names, variants = list(dict.fromkeys(args.saes)), scorable_names()
    l0s = _parse_l0(args.l0) if args.l0 is not None else []
    if own_names := [name for name in names if name in variants]:
        check_overrides(own_names, {**overrides, **dict.fromkeys(grid_fields(cells))})
    wanted: list[Any] = []
    for name in names:
        if name not in variants:
            wanted += resolve_requests([name], target, {}, [{}], args.seeds, args.trained)
            continue
        values = [_l0_setting(name, l0, target) for l0 in l0s] or [{}]
        for field in values[0]:
            if field in grid_fields(cells) or field in overrides:
                raise UsageError(f"{field} is given twice: by --l0 and by itself")
        own = [{**applicable_overrides(name, cell), **value} for value in values for cell in cells]
        wanted += resolve_requests([name], target, applicable_overrides(name, overrides), own, args.seeds, args.trained)
    return list({getattr(one, "sae_folder", one): one for one in wanted}.values())


def _l0_setting(name: str, l0: float, target: Target) -> GridPoint:
    """The field that gives an SAE that L0, with its value: k, or the coefficient that the target knows."""
    if name not in target.l0 and "k" in find_variant(name).field_names:
        return {"k": int(l0) if l0.is_integer() else l0}
    for field, values in target.l0.get(name, {}).items():
        if (value := {float(at): value for at, value in values.items()}.get(l0)) is not None:
            return {field: value}
    known = ", ".join(at for values in target.l0.get(name, {}).values() for at in values)
    raise UsageError(
        f"{name} has no k, and the target {target.name} knows its coefficient "
        + (f"for L0 {known} only, not {l0:g}" if known else "for no L0")
        + ": try values with --grid, e.g. --grid l1_coefficient=1,2,4"
    )


def _score_all(
    scorings: list[Scoring], found: list[Any], force: bool, model_of: Any, failures: list[str]
) -> list[tuple[Any, Any]]:
    """Every SAE by every evaluation; a cell that fails is added to the failures."""
    from tqdm import tqdm

    scored = []
    with tqdm(total=len(scorings) * len(found), unit="cell", desc="suite") as bar:
        for scoring in scorings:
            for title, one in with_titles(found):
                try:
                    scored.append((one, score_sae(scoring, one, title, model_of, force)))
                except Untrained as error:
                    failures.append(f"{scoring.name} of {title}: untrained: {error}")
                except UsageError as error:
                    failures.append(f"{scoring.name} of {title}: {error}")
                except Exception as error:
                    traceback.print_exc(file=sys.stderr)
                    said = (str(error).splitlines() or [""])[0]
                    failures.append(f"{scoring.name} of {title}: {type(error).__name__}: {said}")
                bar.update()
    return scored
