"""resolve -> evaluate -> validate -> write, the same for every evaluation.

A result is written to `<output>/<target>/<evaluation>/<sae>/<hash>.json`; the hash is of the SAE's weights and of the
settings, so that a result of other weights is never taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval_runners import _contract, _leaderboard
from sae_variants import _cli
from sae_variants._errors import UsageError, run_command
from sae_variants._targets import Target

TRAIN_PREFIX = "train."


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
    parser.add_argument("--seed", type=int, default=0, help="seed of variants that are trained here (default: 0)")
    parser.add_argument(
        "--output", default="results/runs", metavar="FOLDER", help="root of results (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="evaluate again what has a result already")
    _cli.add_target(parser)
    _cli.add_fields(parser, evaluator.EvalConfig, "evaluation (defaults are the target's where it has its own)")
    parser.epilog = (
        "A variant that must be trained first takes --train.FIELD VALUE, e.g. --train.k 16 --train.d-sae 4096."
    )
    words, extra = _cli.split_unknown(parser, argv)
    args = parser.parse_args(words)
    if args.seed < 0:
        raise UsageError(f"--seed must not be negative, not {args.seed}")
    overrides = _cli.extra_options(extra, prefix=TRAIN_PREFIX)
    return _evaluate_all(name, evaluator, args, overrides, argv)


def _evaluate_all(
    name: str, evaluator: _contract.Evaluator, args: Any, overrides: dict[str, Any], argv: list[str]
) -> int:
    from eval_runners import _saes
    from sae_variants import _models

    _cli.quiet()
    target, device = _cli.target_of(args), _cli.device_of(args)
    config = evaluator.EvalConfig(**{**target.evaluations.get(name, {}), **_cli.given(args, evaluator.EvalConfig)})
    for f in fields(config):
        if f.type == "int" and getattr(config, f.name) < 1:
            raise UsageError(f"{_cli.dashed(f.name)} must be at least 1, not {getattr(config, f.name)}")
    output = writable(Path(args.output))
    names = list(dict.fromkeys(args.saes))
    found = _saes.find(names, target, overrides, args.seed, args.trained, device)
    model, results = None, []
    for sae_found in found:
        weight_hash = sae_found.weight_hash()
        path = result_path(output, name, target, sae_found.path_name, weight_hash, asdict(config))
        if path.exists() and not args.force:
            print(f"{sae_found.label}: {path} (reused: same weights, same settings; --force makes it again)")
            results.append((sae_found, json.loads(path.read_text())))
            continue
        if model is None:
            model = _models.load_model(target.model_name, device, target.dtype)
        sae = sae_found.load(device)
        check_fits(sae, sae_found.label, target, model)
        check_text(getattr(config, "context_size", 1), target, model)
        print(f"{sae_found.label}: evaluating {name} on {target.name}")
        started = time.time()
        evaluation = evaluator.evaluate(sae, target, config, model=model, device=device)
        evaluation = replace(evaluation, ours=finite(evaluation.ours))
        result = envelope(evaluation, sae_found, target, weight_hash, device, argv, name, time.time() - started)
        validate(evaluator.output_class(), result)
        write_atomically(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        print(f"{sae_found.label}: {path}")
        results.append((sae_found, result))
    print_table(evaluator, results, _leaderboard.comparable(output, target.name, name, like(results)))
    return verdict_code(results)


def like(results: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """The result whose conditions decide what else the table shows: the first of an SAE that was trained."""
    return next((result for found, result in results if found.learns), results[0][1])


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


def result_path(root: Path, name: str, target: Target, sae: str, weight_hash: str, config: dict[str, Any]) -> Path:
    from sae_variants._models import model_id

    key = {
        "weights": weight_hash,
        "config": config,
        "model": model_id(target.model_name),
        "hook_name": target.hook_name,
    }
    key |= {"text": target.text_id, "text_version": target.text_version, "sae_bench": version("sae-bench")}
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=6).hexdigest()
    return root / target.name / name / sae / f"{digest}.json"


def envelope(
    evaluation: _contract.Evaluation,
    found: Any,
    target: Target,
    weight_hash: str,
    device: str,
    argv: list[str],
    name: str,
    seconds: float,
) -> dict[str, Any]:
    """SAEBench's result with ours under `eval_result_unstructured`: verdict, added metrics, provenance."""
    failures = list(evaluation.failures)
    if found.training_tokens is not None and found.training_tokens <= 0:
        failures.insert(0, "trained on 0 tokens")
    result = dict(evaluation.output)
    result["sae_lens_id"] = found.label
    result["sae_lens_release_id"] = target.name
    result["eval_result_unstructured"] = {
        **evaluation.ours,
        "trained": not failures,
        "not_trained_because": failures,
        "provenance": {
            "command": shlex.join(["python", "-m", f"eval_runners.{name}", *without_paths(argv)]),
            "commit": commit(),
            "versions": {p: version(p) for p in ("sae-variants", "sae-lens", "sae-bench", "transformer-lens", "torch")},
            "device": device,
            "seconds": round(seconds, 1),
            "seed": found.seed,
            "training_tokens": found.training_tokens,
            "weight_hash": weight_hash,
            "target": target.name,
            "hook_name": target.hook_name,
            "text": target.text_id,
        },
    }
    return result


def without_paths(argv: list[str]) -> list[str]:
    """The words of a command with the last part of each path only: a result may be published."""

    def last_part(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return option + equals + (value.rstrip("/").rpartition("/")[2] if value.startswith(("/", "~", "..")) else value)

    return [last_part(word) for word in argv]


def validate(output_class: type, result: dict[str, Any]) -> None:
    """The result must load as SAEBench's own output class."""
    from pydantic import TypeAdapter

    TypeAdapter(output_class).validate_python(result)


def finite(value: Any) -> Any:
    """The same with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def commit() -> str | None:
    """Commit of this package's own repository, `+` if files differ from it; None if it was installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def writable(root: Path) -> Path:
    """The folder, made if need be. UsageError, before any work, if nothing can be written to it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(2**20))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write results to {root}: {error.strerror}; give another --output") from error
    return root


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; give another --output") from error


def verdict_code(results: list[tuple[Any, dict[str, Any]]]) -> int:
    """0 if every SAE is trained; `random` is not, and may be asked for."""
    code = 0
    for found, result in results:
        ours = result["eval_result_unstructured"]
        if not ours["trained"]:
            print(f"{found.label}: untrained: {'; '.join(ours['not_trained_because'])}")
            code = 1 if found.learns else code
    return code


def is_not_a_number(metric: _contract.Metric, result: dict[str, Any]) -> bool:
    names = result["eval_result_unstructured"].get("not_a_number", [])
    return any(metric.path.endswith("." + name) for name in names)


def print_table(evaluator: Any, results: list[tuple[Any, dict[str, Any]]], others: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {found.label: result for found, result in results}
    columns |= {label: result for label, result in others.items() if label not in columns}
    table = Table("metric", "better")
    for label, result in columns.items():
        table.add_column(
            label if result["eval_result_unstructured"]["trained"] else f"{label} (untrained)", justify="right"
        )
    for metric in evaluator.METRICS:
        values = [_contract.at(result, metric.path) for result in columns.values()]
        absent = [is_not_a_number(metric, result) for result in columns.values()]
        shown = ["-" if v is None or a else f"{v:.4g}" for v, a in zip(values, absent, strict=True)]
        table.add_row(metric.title, _contract.ARROWS[metric.better], *shown)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
