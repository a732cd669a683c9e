"""Score one SAE by one evaluator: prepare the settings, check that both fit, evaluate, validate, write."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.registry import load_evaluator
from eval_runners.store.read import Result, load_result
from eval_runners.store.result import ResultLocation, validate_result, write_result
from sae_variants.cli.fields import to_option
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from eval_runners.harness.find_sae import LocatedSAE


@dataclass(frozen=True)
class Scoring:
    """One evaluation with its settings, on one target, ready for any SAE."""

    evaluator: Any
    config: Any
    target: Target
    place: ResultLocation

    @property
    def name(self) -> str:
        return self.place.evaluation


def prepare_scoring(
    name: str, target: Target, given: dict[str, Any], output: Path, device: str, command: list[str]
) -> Scoring:
    """An evaluation with the target's settings and those given. UsageError, before any work, if they cannot be."""
    evaluator = load_evaluator(name)
    if made_by := getattr(evaluator, "MADE_BY", ""):
        raise UsageError(f"{name} is made by {made_by}")
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in target.evaluations.get(name, {}).items()}
    config = evaluator.EvalConfig(**{**own, **given})
    for f in fields(config):
        number, least = getattr(config, f.name), 0 if f.name.endswith("seed") else 1
        if str(f.type).startswith("int") and number is not None and number < least:
            raise UsageError(f"{to_option(f.name)} must be at least {least}, not {number}")
    versions: dict[str, str] = {}
    if prepare := getattr(evaluator, "prepare", None):
        config, versions = prepare(target, config)
    return Scoring(
        evaluator, config, target, ResultLocation(output, name, target, asdict(config), versions, device, command)
    )


def check_supported(scoring: Scoring, wanted: list[Any]) -> None:
    """UsageError, before anything is trained, for an SAE that the evaluation is not for."""
    refuses = getattr(scoring.evaluator, "refuses", None)
    for plan in wanted:
        if refuses and hasattr(plan, "settings") and (reason := refuses(plan, scoring.config)):
            raise UsageError(f"{plan.label}: {reason}")


def snapshot_shares(scorings: list[Scoring]) -> tuple[float, ...]:
    """Shares of the training after which evaluations look at an SAE."""
    of = (
        scoring.evaluator.snapshots(scoring.config) for scoring in scorings if hasattr(scoring.evaluator, "snapshots")
    )
    return tuple(dict.fromkeys(share for shares in of for share in shares))


def model_loader(target: Target, device: str) -> Callable[[], Any]:
    """The target's language model, loaded when it is first asked for."""
    from sae_variants.language_model.load import load_model

    return cache(lambda: load_model(target.model_name, device, target.dtype))


def with_titles(found: list[LocatedSAE]) -> Iterator[tuple[str, LocatedSAE]]:
    for number, one in enumerate(found, start=1):
        title = one.label if len({other.seed for other in found}) == 1 else f"{one.label} (seed {one.seed})"
        yield (f"[{number}/{len(found)}] {title}" if len(found) > 1 else title), one


def score_sae(scoring: Scoring, found: LocatedSAE, title: str, model_of: Callable[[], Any], force: bool) -> Result:
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
            result = load_result(path)
            beside = (result.get("eval_result_unstructured") or {}).get("files") or []
            if gone := [ending for ending in beside if not path.with_suffix(f".{ending}").exists()]:
                raise UsageError(f"beside {path} there is no {', '.join(gone)}")
            if result.get("sae_lens_id") != found.label:  # the recipe that labels refer to has changed, not the SAE
                result["sae_lens_id"] = found.label
                write_result(path, result, {})
            print(f"{title}: {path} (reused: same weights, same settings; --force makes it again)")
            return result
        except UsageError as error:
            print(f"warning: {error}; it is made again", file=sys.stderr)
    model = model_of()
    sae = found.load(place.device)
    check_fits(sae, found.label, target, model)
    if hasattr(config, "context_size"):
        check_context(config.context_size, target, model)
    print(f"{title}: evaluating {scoring.name} on {target.name}")
    started = time.time()
    options = {"found": found} if "found" in signature(evaluator.evaluate).parameters else {}
    evaluation = evaluator.evaluate(sae, target, config, model=model, device=place.device, **options)
    result = place.envelope(evaluation, found, weight_hash, time.time() - started)
    validate_result(evaluator.output_class(), result)
    write_result(path, result, evaluation.files)
    print(f"{title}: {path}")
    return result


def check_fits(sae: Any, label: str, target: Target, model: Any) -> None:
    """UsageError if the SAE is of another width, or of another hook, than the target."""
    from sae_variants.language_model.hooks import hook_width

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


def check_context(context_size: int, target: Target, model: Any) -> None:
    """UsageError if the model or the held-out text is shorter than a context."""
    from sae_variants.language_model.contexts import read_contexts

    if context_size < 3:
        raise UsageError(f"--context-size must be at least 3, BOS and two tokens, not {context_size}")
    if context_size > model.cfg.n_ctx:
        raise UsageError(f"--context-size {context_size} exceeds the model's {model.cfg.n_ctx} positions")
    if target.is_local and next(read_contexts(target, model, context_size, "heldout"), None) is None:
        raise UsageError(f"the held-out text of {target.title} is shorter than one context of {context_size} tokens")


def exit_code(results: list[tuple[LocatedSAE, Result]], failures: list[str]) -> int:
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
