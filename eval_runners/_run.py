"""resolve -> evaluate -> validate -> write -> print, the same for every evaluation."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from eval_runners import _contract, _leaderboard, _result, _table
from sae_variants import _cli, _grid
from sae_variants._errors import UsageError, run_command
from sae_variants._targets import Target

TRAIN_PREFIX = "train."
NEEDED = ("dataset_names", "k_values", "ks", "context_length", "context_size")
"""Settings that a baseline must name, where the evaluation has them, beside the model."""


def run(name: str) -> None:
    """Entry point of `python -m eval_runners.<name>`."""
    run_command(lambda: main(name, sys.argv[1:]))


def main(name: str, argv: list[str]) -> int:
    evaluator: Any = import_module(f"eval_runners.{name}")
    parser = _cli.Parser(prog=f"python -m eval_runners.{name}", description=evaluator.__doc__)
    parser.add_argument(
        "--sae", action="append", required=True, metavar="NAME", dest="saes",
        help="a variant, stock:ARCHITECTURE, random, a folder, or user/repo:sae_id on the Hub; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=_cli.seeds, default=[0], metavar="0,1,2",
        help="seeds of variants that are trained here; several give mean ± standard error (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="results/runs", metavar="FOLDER", help="root of results (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="evaluate again what has a result already")
    parser.add_argument("--baseline", metavar="FILE", help="a result of SAEBench's, to print the differences to")
    if hasattr(evaluator, "details"):
        parser.add_argument("--details", action="store_true", help="print a row for every task")
    parser.add_argument("--csv", metavar="FILE", help="write a row per SAE and seed, a column per metric")
    _cli.add_grid(parser)
    _cli.add_target(parser)
    _cli.add_fields(parser, evaluator.EvalConfig, "evaluation (defaults are the target's where it has its own)")
    parser.epilog = (
        "A variant that must be trained first takes --train.FIELD VALUE, e.g. --train.k 16 --train.d-sae 4096."
    )
    words, extra = _cli.split_unknown(parser, argv)
    args = parser.parse_args(words)
    overrides = _cli.extra_options(extra, prefix=TRAIN_PREFIX)
    return _evaluate_all(name, evaluator, args, overrides, argv)


def _evaluate_all(
    name: str, evaluator: _contract.Evaluator, args: Any, overrides: dict[str, Any], argv: list[str]
) -> int:
    from eval_runners import _saes
    from sae_variants import _models

    _cli.quiet()
    target, device = _cli.target_of(args), _cli.device_of(args)
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in target.evaluations.get(name, {}).items()}
    config = evaluator.EvalConfig(**{**own, **_cli.given(args, evaluator.EvalConfig)})
    for f in fields(config):
        number, least = getattr(config, f.name), 0 if f.name.endswith("seed") else 1
        if str(f.type).startswith("int") and number is not None and number < least:
            raise UsageError(f"{_cli.dashed(f.name)} must be at least {least}, not {number}")
    versions: dict[str, str] = {}
    if prepare := getattr(evaluator, "prepare", None):
        config, versions = prepare(target, config)
    baseline = _baseline(args.baseline, evaluator, target, config, versions) if args.baseline is not None else None
    root = _result.writable(Path(args.output))
    place = _result.Place(root, name, target, asdict(config), versions, device, argv)
    found = _saes.find(
        list(dict.fromkeys(args.saes)), target, overrides, _grid.parse(args.grid), args.seeds, args.trained, device
    )
    model, results, without = None, [], []
    for number, sae_found in enumerate(found, start=1):
        weight_hash = sae_found.weight_hash()
        path = place.path(sae_found.path_name, weight_hash)
        title = sae_found.label if len(args.seeds) == 1 else f"{sae_found.label} (seed {sae_found.seed})"
        title = f"[{number}/{len(found)}] {title}" if len(found) > 1 else title
        if path.exists() and not args.force:
            try:
                results.append((sae_found, _leaderboard.load(path)))
                print(f"{title}: {path} (reused: same weights, same settings; --force makes it again)")
                continue
            except UsageError as error:
                print(f"warning: {error}; it is made again", file=sys.stderr)
        if model is None:
            model = _models.load_model(target.model_name, device, target.dtype)
        sae = sae_found.load(device)
        check_fits(sae, sae_found.label, target, model)
        if hasattr(config, "context_size"):
            check_text(config.context_size, target, model)
        print(f"{title}: evaluating {name} on {target.name}")
        started = time.time()
        try:
            evaluation = evaluator.evaluate(sae, target, config, model=model, device=device)
        except _contract.Untrained as error:
            print(f"{title}: untrained: {error}; there is no result")
            without.append(title)
            continue
        result = place.envelope(evaluation, sae_found, weight_hash, time.time() - started)
        _result.validate(evaluator.output_class(), result)
        _result.write(path, result, evaluation.files)
        print(f"{title}: {path}")
        results.append((sae_found, result))
    if results:
        _show(evaluator, root, place, results, args, baseline)
    return 1 if without else verdict_code(results)


def _show(
    evaluator: Any, root: Path, place: _result.Place, results: list[tuple[Any, Any]], args: Any, baseline: Any
) -> None:
    """The table of what was asked for, beside what lies there already and was made under the same conditions."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for found, result in results:
        columns.setdefault(found.label, []).append(result)
    learnt = [result for found, result in results if found.learns] or [result for _, result in results]
    others = _leaderboard.comparable(root, place.target.name, place.evaluation, learnt)
    shown = {_leaderboard.weights(result) for _, result in results}
    others = {k: v for k, v in others.items() if k not in columns and not shown & {*map(_leaderboard.weights, v)}}
    _table.print_metrics(evaluator.METRICS, {**columns, **others})
    if args.csv:
        _table.write_csv(Path(args.csv), evaluator.METRICS, results)
    for label, same in columns.items():
        if getattr(args, "details", False):
            for result in same:
                seed = result["eval_result_unstructured"]["provenance"]["seed"]
                _table.print_details(label if seed is None else f"{label}, seed {seed}", evaluator.details(result))
        if baseline is not None:
            _table.print_differences(evaluator.METRICS, label, same, Path(args.baseline).stem, baseline)


def _baseline(
    file: str, evaluator: _contract.Evaluator, target: Target, config: Any, versions: dict[str, str]
) -> dict[str, Any]:
    """A result to compare with. UsageError, before any work, if it was made under other conditions."""
    from eval_runners._saebench import text_name

    baseline = _leaderboard.load(Path(file))
    own = next(f.default for f in fields(evaluator.output_class()) if f.name == "eval_type_id")
    planned = {
        "evaluation": getattr(own, "default", own),  # a value, or pydantic's field with it
        "model_name": target.model_name,
        "hook_name": target.hook_name,
        "llm_dtype": target.dtype,
        "dataset": text_name(target),
        "documents": versions or None,
        **asdict(config),
    }
    there = _leaderboard.conditions(baseline)
    if separate := _leaderboard.differing(planned, there):
        raise UsageError(f"cannot compare with {file}: {'; '.join(separate)}")
    if unnamed := [key for key in ("model_name", *NEEDED) if key in planned and there.get(key) is None]:
        raise UsageError(f"cannot compare with {file}: it does not say its {', '.join(unnamed)}")
    return baseline


def check_fits(sae: Any, label: str, target: Target, model: Any) -> None:
    """UsageError if the SAE is of another width, or of another hook, than the target."""
    from sae_variants._models import hook_width

    d_in = hook_width(model, target.hook_name)
    if sae.cfg.d_in != d_in:
        raise UsageError(f"{label} has d_in = {sae.cfg.d_in}, but {target.hook_name} of {target.name} is {d_in} wide")
    hook, trained_on = sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name
    if hook is not None and hook != target.hook_name:
        raise UsageError(f"{label} was trained at {hook}, not at {target.hook_name} of {target.name}")
    if trained_on is not None and trained_on.split("/")[-1] != target.model_name.split("/")[-1]:
        raise UsageError(f"{label} was trained on {trained_on}, not on {target.model_name}")
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = target.hook_name, target.model_name
    if sae.cfg.metadata.prepend_bos is None:
        sae.cfg.metadata.prepend_bos = True


def check_text(context_size: int, target: Target, model: Any) -> None:
    """UsageError if the model or the held-out text is shorter than a context."""
    from sae_variants import _targets

    if context_size > model.cfg.n_ctx:
        raise UsageError(f"--context-size {context_size} exceeds the model's {model.cfg.n_ctx} positions")
    if target.is_local and next(_targets.contexts(target, model, context_size, "heldout"), None) is None:
        raise UsageError(f"the held-out text of {target.title} is shorter than one context of {context_size} tokens")


def verdict_code(results: list[tuple[Any, dict[str, Any]]]) -> int:
    """0 if every SAE is trained; `random` is not, and may be asked for."""
    code = 0
    for found, result in results:
        ours = result["eval_result_unstructured"]
        if not ours["trained"]:
            print(f"{found.label}: untrained: {'; '.join(ours['not_trained_because'])}")
            code = 1 if found.learns else code
    return code
