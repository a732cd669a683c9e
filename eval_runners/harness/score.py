"""Score SAEs by evaluators: prepare the settings, check that both fit, evaluate, validate, write."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Result
from eval_runners.contract.located import LocatedSAE
from eval_runners.contract.registry import evaluator_names, load_evaluator
from eval_runners.harness.find_sae import SAERequest
from eval_runners.harness.fit import check_context_early, check_positions, load_for_target
from eval_runners.harness.target_model import LoadedModel, require_source
from eval_runners.store.envelope import make_output, output_class
from eval_runners.store.read import load_result
from eval_runners.store.result import ResultLocation, validate_result, write_result
from sae_variants.cli.fields import to_option
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.files import claim_owner, claimed
from sae_variants.common.values import check_type
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE

Scored = tuple[LocatedSAE, Result]
OWN_SEEDS = ("seed", "random_seed")
"""Names of the setting that is an evaluator's own seed."""


@dataclass(frozen=True)
class Scoring:
    """One evaluator with its settings, on one target, ready for any SAE."""

    evaluator: Evaluator[Any]
    settings: Any
    """An instance of the evaluator's `settings_class`."""
    location: ResultLocation
    is_optional: bool = False
    """Whether it is left out where the target cannot do its task; else that is a failure."""

    @property
    def target(self) -> Target:
        """The language model, hook and text."""
        return self.location.target


def prepare_scoring(
    name: str, target: Target, given: Mapping[str, Any], output: Path, command: Sequence[str]
) -> Scoring:
    """Settle an evaluator's settings: its defaults, then the target's, then those that are given.

    Args:
        name: the evaluator's.
        target: the language model, hook and text. Its `eval_seed` is added to the evaluator's own seed.
        given: settings by field, as given on the command line.
        output: root of the results.
        command: arguments of the command line, for the provenance.

    Raises:
        UsageError: an unknown evaluator, or settings that cannot work.
    """
    evaluator = load_evaluator(name)
    if evaluator.made_by:
        raise UsageError(f"{name} is made by {evaluator.made_by}")
    require_source(name, target, evaluator.needs_truth)
    for evaluation in target.evaluations:
        check_name(f"evaluation in [evaluations] of {target.name}", evaluation, evaluator_names())
    where, hints = f"[evaluations.{name}] of {target.name}", get_type_hints(evaluator.settings_class)
    values: dict[str, Any] = {}
    for field, value in target.evaluations.get(name, {}).items():
        check_name(f"field in {where}", field, hints)
        whole = tuple(value) if isinstance(value, list) else value
        values[field] = check_type(f"{field} in {where}", whole, hints[field])
    settings = evaluator.settings_class(**{**values, **given})
    for field, hint in hints.items():
        value, least = getattr(settings, field), 0 if field.endswith("seed") else 1
        counts = int in (hint, *get_args(hint)) and not field.endswith("_pos")  # from the end, where it is negative
        if counts and isinstance(value, int) and value < least:
            raise UsageError(f"{to_option(field)} must be at least {least}, not {value}")
    own = {field: getattr(settings, field) + target.eval_seed for field in OWN_SEEDS if field in hints}
    settings, versions = evaluator.prepare(target, replace(settings, **own))
    location = ResultLocation(output, name, target, asdict(settings), versions, command, evaluator.version)
    return Scoring(evaluator, settings, location)


def check_supported(scorings: Sequence[Scoring], requests: Sequence[SAERequest]) -> dict[str, str]:
    """Refuse, before anything is trained, variants that an evaluator does not support, and contexts that do not fit.

    Returns:
        Optional evaluations that do not support one of the SAEs -> why.

    Raises:
        UsageError: names the SAE or the setting.
    """
    unsupported: dict[str, str] = {}
    is_missing = any(request.plan and not request.plan.is_trained for request in requests)
    for scoring in scorings:
        check = check_context_early if is_missing else check_positions  # the former reads text, too
        check(scoring.target, scoring.settings)
    for scoring in scorings:
        for request in requests:
            if request.plan and (reason := scoring.evaluator.why_unsupported(request.plan, scoring.settings)):
                if not scoring.is_optional:
                    raise UsageError(f"{request.plan.label}: {reason}")
                unsupported.setdefault(scoring.evaluator.name, f"{request.plan.label}: {reason}")
    return unsupported


def snapshot_shares(scorings: Sequence[Scoring]) -> tuple[float, ...]:
    """Shares of the training after which any of the evaluators needs a snapshot."""
    shares = [share for scoring in scorings for share in scoring.evaluator.snapshot_shares(scoring.settings)]
    return tuple(dict.fromkeys(shares))


def score_sae(
    scoring: Scoring,
    located: LocatedSAE,
    title: str,
    load_model: Callable[[], LoadedModel],
    device: str,
    force: bool = False,
    timeout: float = -1.0,
    following: Sequence[LocatedSAE] = (),
) -> Result:
    """Score one SAE by one evaluator and write the result, or reuse a finished result.

    Args:
        scoring: the evaluator with its settings.
        located: the SAE.
        title: names the SAE in what is printed.
        load_model: loads the target's language model; called only if the result is missing.
        device: device that the evaluation runs on.
        force: evaluate again although there is a result.
        timeout: seconds to wait for another process that makes the result; without limit if negative.
        following: SAEs that come next with the same evaluator; those that have a result are left out.

    Raises:
        UsageError: the SAE does not fit the target or the settings.
        Untrained: there can be no result.
        filelock.Timeout: another process makes the result.
    """
    path = scoring.location.path(located)
    if not force and (result := _reusable_result(path, located, title)):
        return result
    if timeout < 0 and (owner := claim_owner(path)):
        print(f"{title}: {owner} evaluates {scoring.evaluator.name}: waiting for it")
    with claimed(path, timeout):
        if not force and (result := _reusable_result(path, located, title)):  # made meanwhile
            return result
        target, model = scoring.target, load_model()
        truth = model if target.synthetic else None
        missing = [other for other in following if force or not scoring.location.path(other).exists()]
        context = Context(model, device, located, truth, missing)
        sae = load_for_target(located, target, model, device, getattr(scoring.settings, "context_size", None))
        print(f"{title}: evaluating {scoring.evaluator.name} on {target.name}")
        result, files = evaluate_sae(scoring, sae, context)
        write_result(path, result, files)
    print(f"{title}: {path}")
    return result


def evaluate_sae(scoring: Scoring, sae: SAE[Any], context: Context) -> tuple[Result, Mapping[str, bytes]]:
    """Evaluate one SAE that fits the target, and complete and validate the result.

    Returns:
        The result; the files to write beside it, by the end of their name.

    Raises:
        UsageError: the SAE does not fit the settings.
        Untrained: there can be no result.
    """
    evaluator, settings, target = scoring.evaluator, scoring.settings, scoring.target
    started = time.time()
    evaluation = evaluator.evaluate(sae, target, settings, context)
    if not isinstance(evaluation, Evaluation):
        evaluation = Evaluation(evaluation)
    output = evaluation.host_output or make_output(evaluator, settings, evaluation.values, sae, target)
    result = scoring.location.complete(output, evaluation, context, time.time() - started)
    validate_result(output_class(evaluator), result)
    return result, evaluation.files


def _reusable_result(path: Path, located: LocatedSAE, title: str) -> Result | None:
    """The finished result at a path, or None where there is none, or it or a file beside it is damaged."""
    if not path.exists():
        return None
    try:
        result = load_result(path)
        endings = (result.get(UNSTRUCTURED) or {}).get("files") or []
        if missing := [ending for ending in endings if not path.with_suffix(f".{ending}").exists()]:
            raise UsageError(f"beside {path} there is no file {', '.join(missing)}")
    except UsageError as error:
        print(f"warning: {error}; it is evaluated again", file=sys.stderr)
        return None
    if result.get("sae_lens_id") != located.label:  # a label changes with the recipe that it refers to
        result["sae_lens_id"] = located.label
        write_result(path, result, {})
    print(f"{title}: {path} (reused: same weights, same settings; --force evaluates it again)")
    return result
