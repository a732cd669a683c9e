"""python -m eval_runners suite: several SAEs, seeds and evaluations in one go, and one table of them all.

Trains what is missing, in as few streams as fit, then scores cell by cell. Finished cells are found again, so the same
command goes on after an interruption. A cell that fails is named at the end, with its error, while the others finish.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from eval_runners.commands import evaluate as _run
from eval_runners.contract import contract as _contract
from eval_runners.leaderboard import boards as _boards
from eval_runners.leaderboard import render as _render
from eval_runners.leaderboard import terminal as _table
from eval_runners.store import result as _result
from eval_runners.views import grid_picture as _grid_picture
from sae_variants.cli import options as _cli
from sae_variants.common.errors import UsageError, one_of
from sae_variants.common.files import writable
from sae_variants.language_model.target import Target
from sae_variants.registry import variants as _register
from sae_variants.training import grid as _grid
from sae_variants.training import plan as _plan


def main(argv: list[str]) -> int:
    from eval_runners.harness import find_sae as _saes

    parser = _cli.Parser(prog="python -m eval_runners suite", description=__doc__)
    parser.add_argument(
        "--evals",
        default=",".join(_contract.USUAL),
        metavar="NAME,...",
        help="evaluations, parted by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--l0", metavar="16,32,64",
        help="train every SAE for each L0: k, or where there is no k the coefficient that the target knows for it",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the table's rows, a column per metric")
    parser.add_argument("--picture", metavar="FILE", help="draw the --grid: every metric of the table over its fields")
    _run.add_common(parser)
    parser.epilog = f"{parser.epilog} Settings of an evaluation: --EVALUATION.FIELD VALUE, e.g. --core.context-size 64."
    words, extra = _cli.split_unknown(parser, argv)
    args = parser.parse_args(words)
    evaluations = _evaluations(args.evals)
    if args.picture:
        _grid_picture.check(Path(args.picture), args.grid)
    for file, option in ((args.csv, "--csv"), (args.picture, "--picture")):
        if file:
            writable(Path(file), option)
    overrides, settings = _sorted_options(extra, evaluations)
    _cli.quiet()
    target, device = _cli.target_of(args), _cli.device_of(args)
    output = Path(args.output)
    command = ["python", "-m", "eval_runners", "suite", *argv]
    scorings = [_run.prepared(name, target, settings[name], output, device, command) for name in evaluations]
    cells = _grid.parse(args.grid, args.vary)
    wanted = _asked(args, target, overrides, cells)
    _result.writable(output)
    found, failures = _saes.ready(wanted, _grid.fields(cells), device, _run.snapshots(scorings))
    scored = _score_all(scorings, found, args.force, _run.loader(target, device), failures)
    if scored:
        _render.show(_boards.boards([result for _, result in scored]))
        for scoring in scorings:
            own = [result for _, result in scored if _contract.of_type(result["eval_type_id"]) == scoring.name]
            _run.show_across([scoring], own)
        if args.csv:
            _table.write_csv(Path(args.csv), scored)
        if args.picture:
            _grid_picture.draw(Path(args.picture), scored, _grid.fields(cells))
    return _run.verdict_code(scored, failures)


def _evaluations(text: str) -> list[str]:
    wanted = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not wanted:
        raise UsageError("--evals names no evaluation")
    for name in wanted:
        one_of("evaluation", name, _contract.names())
    return wanted


def _sorted_options(extra: list[str], evaluations: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
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
        config_class = _contract.module(name).EvalConfig
        parser = _cli.Parser(prog=f"python -m eval_runners.{name}")
        _cli.add_fields(parser, config_class, "evaluation")
        settings[name] = _cli.given(parser.parse_args(parts[name]), config_class)
    return _cli.extra_options(parts["train"]), settings


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--l0 is a list of numbers like 16,32,64, not {text!r}") from error
    if min(found) <= 0:
        raise UsageError("--l0 must be positive")
    return list(dict.fromkeys(found))


def _asked(args: Any, target: Target, overrides: dict[str, Any], cells: list[_grid.Cell]) -> list[Any]:
    """Plans, or names of places, of every SAE for every cell, L0 and seed.

    Raises:
        UsageError: an unknown name or field, or an SAE without k whose coefficient for an L0 the target does not know.
    """
    from eval_runners.harness import find_sae as _saes

    names, variants = list(dict.fromkeys(args.saes)), _register.scorable()
    l0s = _numbers(args.l0) if args.l0 is not None else []
    if own_names := [name for name in names if name in variants]:
        _plan.check_overrides(own_names, {**overrides, **dict.fromkeys(_grid.fields(cells))})
    wanted: list[Any] = []
    for name in names:
        if name not in variants:
            wanted += _saes.asked([name], target, {}, [{}], args.seeds, args.trained)
            continue
        values = [_setting(name, l0, target) for l0 in l0s] or [{}]
        for field in values[0]:
            if field in _grid.fields(cells) or field in overrides:
                raise UsageError(f"{field} is given twice: by --l0 and by itself")
        own = [{**_plan.applying(name, cell), **value} for value in values for cell in cells]
        wanted += _saes.asked([name], target, _plan.applying(name, overrides), own, args.seeds, args.trained)
    return list({getattr(one, "sae_folder", one): one for one in wanted}.values())


def _setting(name: str, l0: float, target: Target) -> _grid.Cell:
    """The field that gives an SAE that L0, with its value: k, or the coefficient that the target knows."""
    if name not in target.l0 and "k" in _register.resolve(name).field_names:
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
    scorings: list[_run.Scoring], found: list[Any], force: bool, model_of: Any, failures: list[str]
) -> list[tuple[Any, Any]]:
    """Every SAE by every evaluation; a cell that fails is added to the failures."""
    from tqdm import tqdm

    scored = []
    with tqdm(total=len(scorings) * len(found), unit="cell", desc="suite") as bar:
        for scoring in scorings:
            for title, one in _run.titled(found):
                try:
                    scored.append((one, _run.score(scoring, one, title, model_of, force)))
                except _contract.Untrained as error:
                    failures.append(f"{scoring.name} of {title}: untrained: {error}")
                except UsageError as error:
                    failures.append(f"{scoring.name} of {title}: {error}")
                except Exception as error:
                    traceback.print_exc(file=sys.stderr)
                    said = (str(error).splitlines() or [""])[0]
                    failures.append(f"{scoring.name} of {title}: {type(error).__name__}: {said}")
                bar.update()
    return scored
