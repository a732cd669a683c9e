"""resolve -> evaluate -> validate -> write -> print, the same for every evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract import contract as _contract
from eval_runners.leaderboard import boards as _boards
from eval_runners.leaderboard import terminal as _table
from eval_runners.store import read as _read
from eval_runners.store import result as _result
from eval_runners.store.read import Result
from sae_variants.cli import options as _cli
from sae_variants.common.errors import UsageError, run_command
from sae_variants.common.files import writable, write_whole
from sae_variants.language_model.target import Target
from sae_variants.training import grid as _grid

if TYPE_CHECKING:
    from eval_runners.harness.find_sae import Found

TRAIN_PREFIX = "train."
NEEDED = ("dataset_names", "k_values", "ks", "context_length", "context_size")
"""Settings that a baseline must name, where the evaluation has them, beside the model."""


def run(name: str) -> None:
    """Entry point of `python -m eval_runners.<name>`."""
    run_command(lambda: main(name, sys.argv[1:]))


def main(name: str, argv: list[str]) -> int:
    from eval_runners.harness import find_sae as _saes

    evaluator = _contract.module(name)
    is_own = _contract.places()[name] == f"eval_runners.{name}"
    words_of_it = [f"eval_runners.{name}"] if is_own else ["eval_runners", name]
    parser = _cli.Parser(prog=f"python -m {' '.join(words_of_it)}", description=evaluator.__doc__)
    parser.add_argument("--baseline", metavar="FILE", help="a result of SAEBench's, to print the differences to")
    if hasattr(evaluator, "details"):
        parser.add_argument("--details", action="store_true", help="print a row for every task")
    parser.add_argument("--csv", metavar="FILE", help="write a row per SAE and seed, a column per metric")
    add_common(parser)
    _cli.add_fields(parser, evaluator.EvalConfig, "evaluation (defaults are the target's where it has its own)")
    words, extra = _cli.split_unknown(parser, argv)
    args = parser.parse_args(words)
    overrides = _cli.extra_options(extra, prefix=TRAIN_PREFIX)
    _cli.quiet()
    targets, device = _cli.targets_of(args), _cli.device_of(args)
    command = ["python", "-m", *words_of_it, *argv]
    if args.csv:
        writable(Path(args.csv), "--csv")
    given, output = _cli.given(args, evaluator.EvalConfig), Path(args.output)
    scorings = [prepared(name, target, given, output, device, command) for target in targets]
    baseline = _baseline(args.baseline, scorings[0]) if args.baseline is not None else None
    _result.writable(output)
    cells = _grid.parse(args.grid, args.vary)
    names = list(dict.fromkeys(args.saes))
    wanted = [_saes.asked(names, target, overrides, cells, args.seeds, args.trained) for target in targets]
    for scoring, saes in zip(scorings, wanted, strict=True):
        refuse_early(scoring, saes)
    every: list[tuple[Found, Result]] = []
    failures: list[str] = []
    for scoring, saes in zip(scorings, wanted, strict=True):
        found, failed = _saes.ready(saes, _grid.fields(cells), device, snapshots([scoring]))
        model = loader(scoring.target, device)
        results: list[tuple[Found, Result]] = []
        for title, sae_found in titled(found):
            try:
                results.append((sae_found, score(scoring, sae_found, title, model, args.force)))
            except _contract.Untrained as error:
                failed.append(f"{title}: untrained: {error}; there is no result")
        if results:
            _show(scoring, results, args, baseline)
        failures += failed
        every += results
    if every and args.csv:
        _table.write_csv(Path(args.csv), every)
    show_across(scorings, [result for _, result in every])
    return verdict_code(every, failures)


def add_common(parser: Any) -> None:
    """The options of every command that scores SAEs."""
    parser.add_argument(
        "--sae", action="append", required=True, metavar="NAME", dest="saes",
        help="a variant, stock:ARCHITECTURE, random, a folder, or user/repo:sae_id on the Hub; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=_cli.seeds, default=[0], metavar="0,1,2",
        help="seeds of variants that are trained here; several give mean ± standard error (default: 0)",
    )  # fmt: skip
    add_output(parser)
    parser.add_argument("--force", action="store_true", help="evaluate again what has a result already")
    _cli.add_grid(parser)
    _cli.add_target(parser)
    parser.epilog = (
        "A variant that must be trained first takes --train.FIELD VALUE, e.g. --train.k 16 --train.d-sae 4096."
    )


def add_output(parser: Any) -> None:
    parser.add_argument(
        "--output", default="results/runs", metavar="FOLDER", help="root of results (default: %(default)s)"
    )


@dataclass(frozen=True)
class Scoring:
    """One evaluation with its settings, on one target, ready for any SAE."""

    evaluator: Any
    config: Any
    target: Target
    place: _result.Place

    @property
    def name(self) -> str:
        return self.place.evaluation


def prepared(
    name: str, target: Target, given: dict[str, Any], output: Path, device: str, command: list[str]
) -> Scoring:
    """An evaluation with the target's settings and those given. UsageError, before any work, if they cannot be."""
    evaluator = _contract.module(name)
    if made_by := getattr(evaluator, "MADE_BY", ""):
        raise UsageError(f"{name} is made by {made_by}")
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in target.evaluations.get(name, {}).items()}
    config = evaluator.EvalConfig(**{**own, **given})
    for f in fields(config):
        number, least = getattr(config, f.name), 0 if f.name.endswith("seed") else 1
        if str(f.type).startswith("int") and number is not None and number < least:
            raise UsageError(f"{_cli.dashed(f.name)} must be at least {least}, not {number}")
    versions: dict[str, str] = {}
    if prepare := getattr(evaluator, "prepare", None):
        config, versions = prepare(target, config)
    return Scoring(
        evaluator, config, target, _result.Place(output, name, target, asdict(config), versions, device, command)
    )


def refuse_early(scoring: Scoring, wanted: list[Any]) -> None:
    """UsageError, before anything is trained, for an SAE that the evaluation is not for."""
    refuses = getattr(scoring.evaluator, "refuses", None)
    for plan in wanted:
        if refuses and hasattr(plan, "settings") and (reason := refuses(plan, scoring.config)):
            raise UsageError(f"{plan.label}: {reason}")


def snapshots(scorings: list[Scoring]) -> tuple[float, ...]:
    """Shares of the training after which evaluations look at an SAE."""
    of = (
        scoring.evaluator.snapshots(scoring.config) for scoring in scorings if hasattr(scoring.evaluator, "snapshots")
    )
    return tuple(dict.fromkeys(share for shares in of for share in shares))


def loader(target: Target, device: str) -> Callable[[], Any]:
    """The target's language model, loaded when it is first asked for."""
    from sae_variants.language_model import load as _models

    return cache(lambda: _models.load_model(target.model_name, device, target.dtype))


def titled(found: list[Found]) -> Iterator[tuple[str, Found]]:
    for number, one in enumerate(found, start=1):
        title = one.label if len({other.seed for other in found}) == 1 else f"{one.label} (seed {one.seed})"
        yield (f"[{number}/{len(found)}] {title}" if len(found) > 1 else title), one


def score(scoring: Scoring, found: Found, title: str, model_of: Callable[[], Any], force: bool) -> Result:
    """The result of one SAE: the one that lies there, unless forced, or a new one, written.

    Raises:
        UsageError: the SAE does not fit the target, or the evaluation refuses it.
        Untrained: there can be no result.
    """
    evaluator, config, target, place = scoring.evaluator, scoring.config, scoring.target, scoring.place
    weight_hash = found.weight_hash
    path = place.path(found.path_name, weight_hash)
    if path.exists() and not force:
        try:
            result = _read.load(path)
            beside = (result.get("eval_result_unstructured") or {}).get("files") or []
            if gone := [ending for ending in beside if not path.with_suffix(f".{ending}").exists()]:
                raise UsageError(f"beside {path} there is no {', '.join(gone)}")
            if result.get("sae_lens_id") != found.label:  # the recipe that labels refer to has changed, not the SAE
                result["sae_lens_id"] = found.label
                _result.write(path, result, {})
            print(f"{title}: {path} (reused: same weights, same settings; --force makes it again)")
            return result
        except UsageError as error:
            print(f"warning: {error}; it is made again", file=sys.stderr)
    model = model_of()
    sae = found.load(place.device)
    check_fits(sae, found.label, target, model)
    if hasattr(config, "context_size"):
        check_text(config.context_size, target, model)
    print(f"{title}: evaluating {scoring.name} on {target.name}")
    started = time.time()
    options = {"found": found} if "found" in signature(evaluator.evaluate).parameters else {}
    evaluation = evaluator.evaluate(sae, target, config, model=model, device=place.device, **options)
    result = place.envelope(evaluation, found, weight_hash, time.time() - started)
    _result.validate(evaluator.output_class(), result)
    _result.write(path, result, evaluation.files)
    print(f"{title}: {path}")
    return result


def _show(scoring: Scoring, results: list[tuple[Found, Result]], args: Any, baseline: Any) -> None:
    """The table of what was asked for, beside what lies there already and was made under the same conditions."""
    evaluator, place = scoring.evaluator, scoring.place
    columns: dict[str, list[Result]] = {}
    for found, result in results:
        columns.setdefault(found.label, []).append(result)
    here = [root / place.target.name / place.evaluation for root in (place.root, _read.PUBLISHED)]
    lying, broken = _read.tree(here)
    for reason in broken:
        print(f"left out of the table: {reason}", file=sys.stderr)
    others = _boards.beside([result for _, result in results], lying)
    shown = {row.label: row.all_results for row in others if row.label not in columns}
    _table.print_metrics(evaluator.METRICS, {**columns, **shown})
    for label, same in columns.items():
        for result in same:
            seed = result["eval_result_unstructured"]["provenance"]["seed"]
            title = label if seed is None else f"{label}, seed {seed}"
            for line in evaluator.words(result) if hasattr(evaluator, "words") else []:
                print(f"{title}: {line}")
            if getattr(args, "details", False):
                _table.print_details(title, evaluator.details(result))
        if baseline is not None:
            _table.print_differences(evaluator.METRICS, label, same, Path(args.baseline).stem, baseline)


def show_across(scorings: list[Scoring], results: list[Result]) -> None:
    """Prints, and writes beside the results, what they say together, if the evaluation has something to say."""
    scoring = scorings[0]
    if not results or not hasattr(scoring.evaluator, "across"):
        return
    lines, files = scoring.evaluator.across(results)
    folder = scoring.place.root / "+".join(one.target.name for one in scorings) / scoring.name
    for line in lines:
        print(line)
    for name, content in files.items():
        write_whole(folder / name, content, "--output")
        print(folder / name)


def _baseline(file: str, scoring: Scoring) -> Result:
    """A result to compare with. UsageError, before any work, if it was made under other conditions."""
    from eval_runners.saebench.shared import text_name

    baseline, target = _read.load(Path(file)), scoring.target
    own = next(f.default for f in fields(scoring.evaluator.output_class()) if f.name == "eval_type_id")
    planned = {
        "evaluation": getattr(own, "default", own),  # a value, or pydantic's field with it
        "model_name": target.model_name,
        "hook_name": target.hook_name,
        "llm_dtype": target.dtype,
        "dataset": text_name(target),
        "documents": scoring.place.versions or None,
        **asdict(scoring.config),
    }
    there = _read.conditions(baseline)
    if separate := _read.differing(planned, there):
        raise UsageError(f"cannot compare with {file}: {'; '.join(separate)}")
    if unnamed := [key for key in ("model_name", *NEEDED) if key in planned and there.get(key) is None]:
        raise UsageError(f"cannot compare with {file}: it does not say its {', '.join(unnamed)}")
    return baseline


def check_fits(sae: Any, label: str, target: Target, model: Any) -> None:
    """UsageError if the SAE is of another width, or of another hook, than the target."""
    from sae_variants.language_model.load import hook_width

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
    from sae_variants.language_model import target as _targets

    if context_size < 3:
        raise UsageError(f"--context-size must be at least 3, BOS and two tokens, not {context_size}")
    if context_size > model.cfg.n_ctx:
        raise UsageError(f"--context-size {context_size} exceeds the model's {model.cfg.n_ctx} positions")
    if target.is_local and next(_targets.contexts(target, model, context_size, "heldout"), None) is None:
        raise UsageError(f"the held-out text of {target.title} is shorter than one context of {context_size} tokens")


def verdict_code(results: list[tuple[Found, Result]], failures: list[str]) -> int:
    """0 if every SAE is trained; `random` is not, and may be asked for. Says what is not."""
    code = 0
    for failure in failures:
        print(failure)
        code = 1
    said = []
    for found, result in results:
        ours = result["eval_result_unstructured"]
        if not ours["trained"]:
            seed = "" if found.seed is None else f" (seed {found.seed})"
            said.append(f"{found.label}{seed}: untrained: {'; '.join(ours['not_trained_because'])}")
            code = 1 if found.learns else code
    for line in dict.fromkeys(said):
        print(line)
    return code
