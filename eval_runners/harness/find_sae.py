"""From the name that a user types to an SAE on disk: resolve the request, train what is missing, locate the folder.

A name is a variant, a folder, `user/repo@revision:path` on the Hub, or `RELEASE:SAE_ID` of SAELens' registry. Every
command takes the same steps:

    resolve_requests -> SAERequest -> locate_requests -> LocatedSAE -> fit.load_for_target -> SAE
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval_runners.contract.located import LocatedSAE
from eval_runners.harness.saved_sae import check_form, check_source, locate_name
from sae_variants.common.errors import UsageError
from sae_variants.formats.hub import parse_hub_id
from sae_variants.formats.source import is_folder
from sae_variants.language_model.target import Target
from sae_variants.registry.saved_config import CONFIG, read_config
from sae_variants.registry.variants import is_variant
from sae_variants.training.grid import GridPoint, check_sweep, make_plans
from sae_variants.training.plan import RECORD, Plan
from sae_variants.training.sharing import is_missing
from sae_variants.training.train import TrainingFailed, train_plans


@dataclass(frozen=True)
class SAERequest:
    """An SAE that a command needs."""

    name: str
    """As the user typed it."""
    plan: Plan | None = None
    """How a variant is trained. None for an SAE that somebody saved."""

    @property
    def key(self) -> Path | str:
        """Equal for two requests exactly when they are for the same SAE."""
        return self.plan.sae_folder if self.plan else str(parse_hub_id(self.name) or self.name)


def check_requests(
    names: Sequence[str],
    target: Target,
    overrides: Mapping[str, Any],
    grid_points: Sequence[GridPoint] = ({},),
    seeds: Sequence[int] = (0,),
) -> None:
    """Refuse of what `resolve_requests` refuses as much as can be without the seconds of importing SAELens.

    Raises:
        UsageError: a name or a training setting that cannot be.
    """
    if "seed" in overrides:
        raise UsageError("--train.seed is written --seeds")
    for name in names:
        if not is_variant(name):
            check_form(name)
    check_sweep([name for name in names if is_variant(name)], target, dict(overrides), list(grid_points), list(seeds))


def resolve_requests(
    names: Sequence[str],
    target: Target,
    overrides: Mapping[str, Any] | None = None,
    grid_points: Sequence[GridPoint] = ({},),
    seeds: Sequence[int] = (0,),
    trained: str | Path | None = None,
) -> list[SAERequest]:
    """Resolve names to requests, without training or loading anything.

    Args:
        names: variants, or SAEs that somebody saved. A variant gives one request for each grid point and seed.
        target: the language model, hook and text that variants are trained on.
        overrides: config fields that replace those of the target's recipe.
        grid_points: values of the config fields that the command's grid varies.
        seeds: seeds of variants.
        trained: root of trained SAEs; None for the default.

    Raises:
        UsageError: an unknown name, or a field that none of the variants has.
    """
    overrides = dict(overrides or {})
    check_requests(names, target, overrides, grid_points, seeds)
    variants = [name for name in names if is_variant(name)]
    for name in names:
        if name not in variants:
            check_source(name)
    plans = make_plans(variants, target, overrides, list(grid_points), list(seeds), trained) if variants else []
    requests: list[SAERequest] = []
    for name in names:
        planned = [SAERequest(name, plan) for plan in plans if plan.full_name == name]
        requests += planned if name in variants else [SAERequest(name)]
    return requests


def known_width(request: SAERequest) -> int | None:
    """Number of latents of a requested SAE, where it is known before the SAE is trained or fetched."""
    plan = request.plan
    folder = plan.sae_folder if plan else Path(request.name)
    if is_folder(str(folder)) and (folder / CONFIG).is_file():
        width = read_config(folder).get("d_sae")
    else:
        width = plan.values.get("d_sae") if plan and not plan.part else None
    return width if type(width) is int else None


def locate_requests(
    requests: Sequence[SAERequest], device: str, axes: Iterable[str] = (), snapshots: tuple[float, ...] = ()
) -> tuple[list[LocatedSAE], list[str]]:
    """Locate the requested SAEs, after training those that are missing.

    Args:
        requests: the SAEs.
        device: device to train on.
        axes: config fields that the command's grid varies; their values are kept with each SAE.
        snapshots: shares of the training after which a snapshot of each SAE is needed. An SAE without its snapshots is
            trained again, so that it and its snapshots come from one training.

    Returns:
        The SAEs in the order of the requests; one line for each SAE that could not be trained.

    Raises:
        UsageError: a folder or Hub repository that holds no SAE.
    """
    by_name = {request.name: locate_name(request.name) for request in requests if request.plan is None}
    failures = train_missing([request.plan for request in requests if request.plan], device, snapshots)
    located = []
    for request in requests:
        if request.plan is None:
            located.append(by_name[request.name])
        elif request.plan.folder not in failures and request.plan.is_trained:  # if not, another worker trains it
            located.append(locate_plan(request.plan, axes))
    return _with_distinct_labels(located), list(failures.values())


def _with_distinct_labels(located: Sequence[LocatedSAE]) -> list[LocatedSAE]:
    """The SAEs, with a hash in the label of a saved SAE where another SAE, no other seed of it, has the same label."""

    def is_another(other: LocatedSAE, sae: LocatedSAE) -> bool:
        is_seed = other.kind == sae.kind and other.seed != sae.seed
        return other.label == sae.label and not is_seed and other.weight_hash != sae.weight_hash

    return [
        replace(sae, label=f"{sae.label}-{sae.weight_hash[:6]}")
        if sae.plan is None and any(is_another(other, sae) for other in located)
        else sae
        for sae in located
    ]


def locate_all(requests: Sequence[SAERequest], device: str) -> list[LocatedSAE]:
    """Locate the requested SAEs. Unlike `locate_requests`, fail if an SAE cannot be trained.

    Raises:
        UsageError: a folder or repository that holds no SAE, or an SAE that cannot be trained.
    """
    located, failures = locate_requests(requests, device)
    if failures:
        raise UsageError(failures[0])
    return located


def train_missing(plans: Sequence[Plan], device: str, snapshots: tuple[float, ...] = ()) -> dict[Path, str]:
    """Train the plans that are not trained yet or lack a snapshot.

    Returns:
        Folder of a plan -> why it could not be trained.
    """
    missing = [plan for plan in plans if is_missing(plan, snapshots)]
    for plan in missing:
        if plan.is_trained:
            print(f"{plan.title} has no snapshots: training it again to record them")
        else:
            seed = plan.settings.seed
            print(f"{plan.label} is not trained on {plan.target.name} with seed {seed} yet: training it first")
    try:
        train_plans(missing, device, snapshots=snapshots)
    except TrainingFailed as failed:
        return failed.failures
    return {}


def locate_plan(plan: Plan, axes: Iterable[str] = ()) -> LocatedSAE:
    """Locate a trained SAE; `axes` are the config fields whose values are kept with it."""
    record = json.loads((plan.folder / RECORD).read_text())
    return LocatedSAE(
        label=plan.label,
        folder=plan.sae_folder,
        seed=plan.settings.seed,
        training_tokens=record["trained_tokens"],
        kind=plan.kind,
        learns=plan.learns,
        grid_point={field: plan.values[field] for field in axes if field in plan.values},
        plan=plan,
    )


def locate_snapshot(folder: Path) -> LocatedSAE:
    """Locate a snapshot of an SAE's training, which needs no label."""
    return LocatedSAE(folder.name, folder)
