"""python -m eval_runners reliability: how much metrics vary between seeds, and which differences are reliable.

Two sources of noise are told apart. Training seeds give other SAEs; evaluation seeds give the same SAE other held-out
contexts and other probe splits. Every SAE is scored once for each training seed, and the first of them once for each
further evaluation seed. SAEs and results that are missing are made; finished ones are reused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eval_runners.commands.evaluate import check_training_options
from eval_runners.commands.suite import SETTINGS_HELP, split_options
from eval_runners.harness.evaluations import (
    expand_groups,
    leave_out_unsupported,
    prepare_scorings,
    print_left_out,
    split_names,
)
from eval_runners.harness.find_sae import check_requests, locate_requests, resolve_requests
from eval_runners.harness.options import add_scoring_options
from eval_runners.harness.score import (
    Scored,
    prepare_scoring,
    snapshot_shares,
)
from eval_runners.harness.score_many import report_failures, score_all
from eval_runners.harness.target_model import model_loader
from eval_runners.leaderboard.reliability import EXPLANATION, HEADS, measure_reliability, reliability_markdown
from eval_runners.leaderboard.terminal import print_details
from eval_runners.store.seeds import FEWEST_SEEDS
from sae_variants.cli.options import Parser, device_from, parse_seeds, split_unknown_options, target_from
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, check_folder_writable, write_atomically
from sae_variants.training.grid import grid_fields, parse_grid

EVALUATIONS = "core,sparse_probing,sae_probes,positional_consistency"


def main(argv: list[str]) -> int:
    """Score, and print a table of standard deviations.

    Returns:
        0 if every SAE has every result and is trained, else 1.

    Raises:
        UsageError: input that cannot work, such as fewer than three training seeds; raised before any SAE is trained.
    """
    parser = _parser()
    known, unknown = split_unknown_options(parser, argv)
    args = parser.parse_args(known)
    names = split_names(args.evals)
    if len(args.seeds) < FEWEST_SEEDS:
        raise UsageError(f"--seeds needs {FEWEST_SEEDS} training seeds at least, not {len(args.seeds)}")
    further_seeds = [seed for seed in args.eval_seeds if seed]
    if not further_seeds:
        raise UsageError("--eval-seeds needs a seed beside 0, which every other command evaluates by")
    if args.markdown:
        check_file_writable(Path(args.markdown), "--markdown")
    overrides, given = split_options(unknown, expand_groups(names), "reliability")
    hide_host_warnings()
    grid_points, target, output = parse_grid(args.grid, args.vary), target_from(args), Path(args.output)
    saes = list(dict.fromkeys(args.saes))
    check_requests(saes, target, overrides, grid_points, args.seeds)
    command = ["python", "-m", "eval_runners", "reliability", *argv]
    scorings, left_out = prepare_scorings(names, target, given, output, command)
    print_left_out(left_out)  # now, too, because the rest takes long
    further = [
        replace(
            prepare_scoring(name, replace(target, eval_seed=seed), given[name], output, command),
            is_optional=scoring.is_optional,
        )
        for seed in further_seeds
        for scoring in scorings
        for name in [scoring.evaluator.name]
    ]
    device = device_from(args)
    requests = resolve_requests(saes, target, overrides, grid_points, args.seeds, args.trained)
    check_training_options(overrides, args, [requests])
    if len({request.plan.label for request in requests if request.plan and request.plan.learns}) < 2:
        raise UsageError("--sae must name two SAEs at least that are trained here: differences are between SAEs")
    scorings = leave_out_unsupported(scorings, requests, left_out)
    check_folder_writable(output)
    located, untrainable = locate_requests(requests, device, grid_fields(grid_points), snapshot_shares(scorings))
    load_model = model_loader(target, device)
    scored, failures, impossible = score_all(scorings, located, load_model, device, args.force, keep_going=True)
    left_out |= impossible
    of_first_seed = [sae for sae in located if sae.seed == args.seeds[0]]
    further = [scoring for scoring in further if scoring.evaluator.name not in left_out]
    again, further_failures, impossible = score_all(
        further, of_first_seed, load_model, device, args.force, keep_going=True
    )
    _print_table([*scored, *again], args.markdown)
    print_left_out(left_out | impossible)
    return report_failures([*scored, *again], [*untrainable, *failures, *further_failures])


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners reliability", description=__doc__)
    parser.add_argument(
        "--evals", default=EVALUATIONS, metavar="NAME,...", help="Evaluations, by commas (default: %(default)s)."
    )
    parser.add_argument(
        "--eval-seeds",
        type=parse_seeds,
        default=[0, 1, 2],
        metavar="0,1,2",
        help="Evaluation seeds: other held-out contexts, other probe splits (default: 0,1,2).",
    )
    parser.add_argument("--markdown", metavar="FILE", help="Write the table as Markdown.")
    add_scoring_options(parser, seeds="0,1,2")
    parser.epilog = f"{parser.epilog} {SETTINGS_HELP}"
    return parser


def _print_table(scored: list[Scored], markdown: str | None) -> None:
    results = [result for _, result in scored]
    for board, metrics in measure_reliability(results):
        rows = (
            {"evaluation": each.column.evaluation, "metric": each.column.metric.title}
            | dict(zip(HEADS, each.cells, strict=True))
            for each in metrics
        )
        print_details(f"{board.model}, {board.hook_name}", rows)
    print(EXPLANATION)
    if markdown:
        write_atomically(Path(markdown), reliability_markdown(results), "--markdown")
