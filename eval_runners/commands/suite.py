"""python -m eval_runners suite: several SAEs, seeds and evaluations at once, and one table of all results.

Trains the SAEs that are missing, in as few streams as fit in memory, then scores each SAE. Finished results are reused,
so the same command continues after an interruption. An SAE that fails is named at the end, with its error; the others
are scored all the same. Of a group such as `saebench`, evaluations that the target does not allow are left out, with
the reason.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_runners.commands.evaluate import check_training_options, show_summaries
from eval_runners.contract.registry import USUAL_EVALUATIONS, load_evaluator
from eval_runners.harness.cells import cells_of
from eval_runners.harness.evaluations import (
    expand_groups,
    leave_out_unsupported,
    prepare_scorings,
    print_left_out,
    split_names,
)
from eval_runners.harness.find_sae import SAERequest, check_requests, locate_requests, resolve_requests
from eval_runners.harness.options import DEFAULT_OUTPUT, add_scoring_options
from eval_runners.harness.score import snapshot_shares
from eval_runners.harness.score_many import report_failures, score_all
from eval_runners.harness.target_model import model_loader
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.terminal import print_boards, write_csv
from eval_runners.views.grid_picture import check_picture, draw_grid
from sae_variants.cli.fields import add_fields, given_fields
from sae_variants.cli.options import (
    Parser,
    device_from,
    group_arguments,
    parse_extra_options,
    split_unknown_options,
    target_from,
)
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.files import check_file_writable, check_folder_writable
from sae_variants.language_model.target import Target
from sae_variants.launch.control import CONTROLS, control
from sae_variants.launch.options import add_launch_options, launch_of, without_launch_options
from sae_variants.launch.share import share_work
from sae_variants.registry.variants import is_variant
from sae_variants.training.grid import GridPoint, grid_fields, parse_grid
from sae_variants.training.plan import applicable_overrides, check_overrides
from sae_variants.training.recipe import l0_fields

SETTINGS_HELP = "Settings of an evaluation: --EVALUATION.FIELD VALUE, e.g. --core.context-size 64."
CONTROLS_HELP = "`suite status` and `suite cancel` show and end the jobs of --launch."


def main(argv: list[str]) -> int:
    """Run the suite.

    Returns:
        0 if every SAE has every result and is trained, else 1.

    Raises:
        UsageError: input that cannot work; raised before any SAE is trained wherever that is possible.
    """
    if argv and not argv[0].startswith("-"):
        check_name("command of suite", argv[0], CONTROLS)
        return control(argv, DEFAULT_OUTPUT)
    parser = _parser()
    known, unknown = split_unknown_options(parser, argv)
    args = parser.parse_args(known)
    names, saes = split_names(args.evals), list(dict.fromkeys(args.saes))
    levels = _parse_l0(args.l0) if args.l0 is not None else []
    if args.picture:
        check_picture(Path(args.picture), args.grid)
    for file, option in ((args.csv, "--csv"), (args.picture, "--picture")):
        if file:
            check_file_writable(Path(file), option)
    launch, argv = launch_of(args), without_launch_options(argv)
    overrides, given = split_options(unknown, expand_groups(names))
    hide_host_warnings()
    grid_points, target, output = parse_grid(args.grid, args.vary), target_from(args), Path(args.output)
    check_requests(saes, target, overrides, grid_points, args.seeds)
    command = ["python", "-m", "eval_runners", "suite", *argv]
    scorings, left_out = prepare_scorings(names, target, given, output, command)
    print_left_out(left_out)  # now, too, because the rest takes long
    device = device_from(args)
    requests = _requests(saes, levels, args, target, overrides, grid_points)
    check_training_options(overrides, args, [requests])
    scorings = leave_out_unsupported(scorings, requests, left_out)
    check_folder_writable(output)
    axes = grid_fields(grid_points)
    if launch:
        cells = cells_of(scorings, [requests] * len(scorings))
        if not share_work(launch, "eval_runners", ["suite", *argv], output, cells):
            return 0
    located, untrainable = locate_requests(requests, device, axes, snapshot_shares(scorings))
    load_model = model_loader(target, device)
    scored, unscored, impossible = score_all(scorings, located, load_model, device, args.force, keep_going=True)
    if scored:
        print_boards(make_boards([result for _, result in scored]))
        for scoring in scorings:
            result_type = scoring.evaluator.result_type
            show_summaries([scoring], [result for _, result in scored if result["eval_type_id"] == result_type])
        if args.csv:
            write_csv(Path(args.csv), scored)
        if args.picture:
            draw_grid(Path(args.picture), scored, axes)
    print_left_out(left_out | impossible)
    return report_failures(scored, [*untrainable, *unscored])


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners suite", description=__doc__)
    parser.add_argument(
        "--evals",
        default=",".join(USUAL_EVALUATIONS),
        metavar="NAME,...",
        help="Evaluations, separated by commas; `saebench` is all of SAEBench's (default: %(default)s).",
    )
    parser.add_argument(
        "--l0",
        metavar="16,32,64",
        help="Train every SAE for each L0, by k or else by the coefficient that the target lists for that L0.",
    )
    parser.add_argument("--csv", metavar="FILE", help="Write the table's rows, with a column per metric.")
    parser.add_argument("--picture", metavar="FILE", help="Draw every metric of the table over the fields of --grid.")
    add_scoring_options(parser)
    add_launch_options(parser)
    parser.epilog = f"{parser.epilog} {SETTINGS_HELP} {CONTROLS_HELP}"
    return parser


def split_options(
    extra: list[str], evaluations: list[str], command: str = "suite"
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Sort `--train.FIELD` and `--EVALUATION.FIELD` into fields to train with, and settings by evaluation."""
    parts: dict[str, list[str]] = {"train": [], **{name: [] for name in evaluations}}
    for option, *value in group_arguments(extra):
        owner, dot, field = option.removeprefix("--").partition(".")
        owner = owner.replace("-", "_")
        if not option.startswith("--") or owner not in parts or not dot:
            raise UsageError(f"unknown option or argument {option!r} (see python -m eval_runners {command} --help)")
        parts[owner] += [f"--{field}", *value]
    settings = {}
    for name in evaluations:
        settings_class = load_evaluator(name).settings_class
        parser = Parser(prog=f"python -m eval_runners.{name}")
        add_fields(parser, settings_class, "evaluation")
        settings[name] = given_fields(parser.parse_args(parts[name]), settings_class)
    return parse_extra_options(parts["train"]), settings


def _parse_l0(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--l0 is a list of numbers like 16,32,64, not {text!r}") from error
    if not all(0 < level < math.inf for level in levels):
        raise UsageError(f"--l0 must list numbers above 0, not {text!r}")
    return list(dict.fromkeys(levels))


def _requests(
    names: Sequence[str],
    levels: Sequence[float],
    args: Namespace,
    target: Target,
    overrides: dict[str, Any],
    grid_points: Sequence[GridPoint],
) -> list[SAERequest]:
    """One request for every SAE, grid point, L0 and seed.

    Raises:
        UsageError: an unknown name or field, or an SAE of which nothing gives an L0.
    """
    axes = grid_fields(list(grid_points))
    if trained_here := [name for name in names if is_variant(name)]:
        check_overrides(trained_here, {**overrides, **dict.fromkeys(axes)})
    requests: list[SAERequest] = []
    for name in names:
        if not is_variant(name):
            requests += resolve_requests([name], target)
            continue
        given = {*axes, *overrides}
        l0_settings: list[GridPoint] = [l0_fields(name, level, target, given) for level in levels] or [{}]
        points = [{**applicable_overrides(name, point), **level} for level in l0_settings for point in grid_points]
        requests += resolve_requests(
            [name], target, applicable_overrides(name, overrides), points, args.seeds, args.trained
        )
    return list({request.key: request for request in requests}.values())
