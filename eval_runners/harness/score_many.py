"""Score many SAEs by many evaluators: in any order with other processes, with a line for each failure."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval_runners.contract.contract import UNSTRUCTURED, CannotDo, Untrained
from eval_runners.contract.located import LocatedSAE
from eval_runners.harness.score import Scored, Scoring, score_sae
from eval_runners.harness.target_model import LoadedModel
from sae_variants.common.errors import UsageError
from sae_variants.common.files import claimed, is_claimed
from sae_variants.common.worker import failure_of, fair_share, is_worker, record_failure

MOST_CLAIMS = 64
"""Results that a worker claims at once, at most: each claim is an open file and a thread, and what 64 SAEs share is
cheap beside what each needs."""


class Outcome(NamedTuple):
    """What came of scoring many SAEs."""

    scored: list[Scored]
    """The SAEs with their results."""
    failures: list[str]
    """One line for each failure."""
    left_out: dict[str, str]
    """Evaluation -> why it was left out."""


def score_all(
    scorings: Sequence[Scoring],
    located: Sequence[LocatedSAE],
    load_model: Callable[[], LoadedModel],
    device: str,
    force: bool,
    keep_going: bool = False,
) -> Outcome:
    """Score every SAE by every evaluator.

    Args:
        scorings: evaluators with their settings.
        located: the SAEs.
        load_model: loads the target's language model; called only if a result is missing.
        device: device that the evaluations run on.
        force: evaluate again although there is a result.
        keep_going: turn errors into failures, so that the other SAEs are still scored.

    Returns:
        Results, failures, and optional evaluations that were left out. An SAE that is `Untrained` is always a failure.

    Raises:
        UsageError: unless `keep_going`, an SAE or settings that do not fit.
    """
    from filelock import Timeout
    from tqdm import tqdm

    cells = [(scoring, title, sae) for scoring in scorings for title, sae in _with_titles(located)]
    scored: dict[int, Scored] = {}
    failures: dict[int, str] = {}
    impossible: dict[str, str] = {}
    bar = tqdm(total=len(cells), unit="result", desc="suite", disable=not keep_going)
    left = list(range(len(cells)))
    ahead: dict[int, contextlib.ExitStack] = {}
    timeouts = (0.0,) if is_worker() else (0.0, -1.0)  # what another process makes comes last, and is waited for
    with bar, contextlib.ExitStack() as claims:
        for timeout in timeouts:
            busy: list[int] = []
            for number in left:
                scoring, title, sae = cells[number]
                name, path = f"{scoring.evaluator.name} of {title}" if keep_going else title, scoring.location.path(sae)
                claim = ahead.pop(number, None)
                if claim:
                    claim.close()  # `score_sae` claims it again, and so finds out whether another took it over
                if scoring.evaluator.name in impossible:
                    continue
                if reason := failure_of(path):
                    failures[number] = f"{name}: {reason}"
                    continue
                later = [other for other in left if other > number and cells[other][0] is scoring]
                if is_worker():  # what it has not claimed may be another's
                    has_share = claim is not None or bool(ahead)
                    if scoring.evaluator.uses_following and not (has_share or path.exists() or is_claimed(path)):
                        paths = {other: scoring.location.path(cells[other][2]) for other in later}
                        ahead = _claim_share(paths, [scoring.location.path(other) for other in located], claims)
                    later = list(ahead)
                following = [cells[other][2] for other in later]
                try:
                    if reason := failure_of(scoring.location.folder):
                        raise CannotDo(reason)
                    scored[number] = sae, score_sae(scoring, sae, title, load_model, device, force, timeout, following)
                except Timeout:
                    busy.append(number)
                    continue
                except CannotDo as error:
                    record_failure(scoring.location.folder, str(error))
                    if not keep_going:
                        raise
                    impossible[scoring.evaluator.name] = str(error)
                    if not scoring.is_optional:
                        failures[number] = f"{scoring.evaluator.name}: {error}"
                except Exception as error:
                    if not keep_going and not isinstance(error, Untrained):
                        raise
                    reason = _reason(error)
                    record_failure(path, reason)
                    failures[number] = f"{name}: {reason}"
                bar.update()
            left = busy
    left_out = {scoring.evaluator.name for scoring in scorings if scoring.is_optional} & impossible.keys()
    return Outcome(
        [scored[number] for number in sorted(scored)],
        [failures[number] for number in sorted(failures)],
        {name: impossible[name] for name in sorted(left_out)},
    )


def _is_missing(path: Path) -> bool:
    return not path.exists() and not failure_of(path)


def _claim_share(
    paths: Mapping[int, Path], all_paths: Sequence[Path], claims: contextlib.ExitStack
) -> dict[int, contextlib.ExitStack]:
    """Claim a worker's fair share of an evaluator's results, beside the one that it makes now.

    Args:
        paths: results that it may claim, by number; those that are missing and that nobody has claimed are taken.
        all_paths: all results of the evaluator; the share is of those that are missing, whoever makes them.
        claims: releases them at the latest.

    Returns:
        What releases a claim, by number.
    """
    from filelock import Timeout

    count = min(MOST_CLAIMS, fair_share(sum(map(_is_missing, all_paths)))) - 1
    ahead: dict[int, contextlib.ExitStack] = {}
    for number, path in paths.items():
        if len(ahead) < count and _is_missing(path):
            claim = claims.enter_context(contextlib.ExitStack())
            with contextlib.suppress(Timeout):
                claim.enter_context(claimed(path, timeout=0))
                ahead[number] = claim
    return ahead


def _reason(error: Exception) -> str:
    """Why there is no result, in one line."""
    if isinstance(error, Untrained):
        return f"untrained: {error}; there is no result"
    if isinstance(error, UsageError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _with_titles(located: Sequence[LocatedSAE]) -> Iterator[tuple[str, LocatedSAE]]:
    several_seeds = len({sae.seed for sae in located}) > 1
    for number, sae in enumerate(located, start=1):
        title = f"{sae.label} (seed {sae.seed})" if several_seeds else sae.label
        yield (f"[{number}/{len(located)}] {title}" if len(located) > 1 else title), sae


def report_failures(scored: Sequence[Scored], failures: Sequence[str]) -> int:
    """Print the failures and the untrained SAEs.

    Returns:
        Exit code: 0 if every SAE has a result and is trained. SAEs that do not learn, `random`, may be untrained.
    """
    code = 1 if failures else 0
    lines = list(failures)
    for located, result in scored:
        verdict = result[UNSTRUCTURED]
        if not verdict["trained"]:
            lines.append(f"{located.title}: untrained: {'; '.join(verdict['not_trained_because'])}")
            code = 1 if located.learns else code
    for line in dict.fromkeys(lines):
        print(line)
    return code
