"""The evaluations that `--evals` names: groups become their members, and what the target does not allow is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_runners.contract.registry import GROUPS, evaluator_names
from eval_runners.harness.find_sae import SAERequest
from eval_runners.harness.score import Scoring, check_supported, prepare_scoring
from sae_variants.common.errors import UsageError, check_name
from sae_variants.language_model.target import Target


def split_names(text: str) -> list[str]:
    """Return the names of evaluations and of groups in a list that is separated by commas.

    Raises:
        UsageError: there is none, or one of them is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--evals names no evaluation")
    for name in names:
        check_name("evaluation", name, [*evaluator_names(), *GROUPS])
    return names


def expand_groups(names: Sequence[str]) -> list[str]:
    """Return each evaluation once, groups replaced by their members."""
    return list(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))


def prepare_scorings(
    names: Sequence[str],
    target: Target,
    given: Mapping[str, Mapping[str, Any]],
    output: Path,
    command: Sequence[str],
) -> tuple[list[Scoring], dict[str, str]]:
    """Settle the settings of several evaluations, before anything is trained.

    An evaluation is optional if only a group names it and no setting of it is given. An optional evaluation that the
    target does not allow is left out.

    Args:
        names: evaluations and groups.
        target: the language model, hook and text.
        given: evaluation -> settings by field.
        output: root of the results.
        command: arguments of the command line, for the provenance.

    Returns:
        The scorings; evaluation -> why it is left out.

    Raises:
        UsageError: an evaluation that is not optional cannot work, or all are left out.
    """
    scorings: list[Scoring] = []
    left_out: dict[str, str] = {}
    for name in expand_groups(names):
        is_optional = name not in names and not given.get(name)
        try:
            scoring = prepare_scoring(name, target, given.get(name, {}), output, command)
        except UsageError as error:
            if not is_optional:
                raise
            left_out[name] = str(error)
        else:
            scorings.append(replace(scoring, is_optional=is_optional))
    if left_out and not scorings:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UsageError(f"{target.name} allows none of the evaluations: {reasons}")
    return scorings, left_out


def leave_out_unsupported(
    scorings: Sequence[Scoring], requests: Sequence[SAERequest], left_out: dict[str, str]
) -> list[Scoring]:
    """Return the scorings that support every SAE; optional ones that do not are added to `left_out`, and printed.

    Raises:
        UsageError: an evaluation that is not optional does not support an SAE, or none is left.
    """
    unsupported = check_supported(scorings, requests)
    print_left_out(unsupported)
    left_out |= unsupported
    supported = [scoring for scoring in scorings if scoring.evaluator.name not in unsupported]
    if not supported:
        raise UsageError("none of the evaluations supports all of the SAEs: see above")
    return supported


def print_left_out(left_out: Mapping[str, str]) -> None:
    """Print a line for each evaluation that is left out."""
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
