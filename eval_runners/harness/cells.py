"""The trainings and results of a command, as workers that share its work see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval_runners.contract.located import LocatedSAE
from eval_runners.harness.find_sae import SAERequest, locate_plan
from eval_runners.harness.saved_sae import locate_name
from eval_runners.harness.score import Scoring, snapshot_shares
from sae_variants.common.worker import failure_of
from sae_variants.launch.share import Cell
from sae_variants.training.sharing import is_missing


def cells_of(scorings: Sequence[Scoring], all_requests: Sequence[Sequence[SAERequest]]) -> Callable[[], list[Cell]]:
    """Return a function that looks up which trainings and results are finished.

    Args:
        scorings: the evaluators.
        all_requests: the SAEs of each of them.
    """
    snapshots = snapshot_shares(scorings)
    located: dict[object, LocatedSAE] = {}

    def locate(request: SAERequest) -> LocatedSAE | None:
        if request.key not in located and (request.plan is None or request.plan.is_trained):
            located[request.key] = locate_plan(request.plan) if request.plan else locate_name(request.name)
        return located.get(request.key)

    def look_up() -> list[Cell]:
        trainings, results = {}, []
        for scoring, requests in zip(scorings, all_requests, strict=True):
            is_impossible = bool(failure_of(scoring.location.folder))
            for request in requests:
                sae, plan, name = locate(request), request.plan, scoring.evaluator.name
                if plan:
                    trainings[plan.folder] = Cell(plan.title, plan.folder, not is_missing(plan, snapshots))
                if is_impossible or (plan and not sae and failure_of(plan.folder)):
                    continue
                path = scoring.location.path(sae) if sae else None
                title = f"{name} of {sae.title if sae else request.name}"
                results.append(Cell(title, path, path is not None and path.exists()))
        return [*trainings.values(), *results]

    return look_up
