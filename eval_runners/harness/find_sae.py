"""From the name that a user types to an SAE on disk: resolve the request, train what is missing, locate the folder.

A name is a variant, a folder, or `user/repo:sae_id` on the Hub. Every command takes the same steps:

    resolve_requests -> SAERequest -> locate_requests -> LocatedSAE -> fit.load_for_target -> SAE
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_runners.contract.located import LocatedSAE
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.language_model.target import Target
from sae_variants.registry.build import load
from sae_variants.registry.contract import config_hooks
from sae_variants.registry.variants import find_variant, scorable_names
from sae_variants.training.grid import GridPoint, make_plans
from sae_variants.training.plan import RECORD, Plan, hash_kind
from sae_variants.training.train import TrainingFailed, train_plans


@dataclass(frozen=True)
class SAERequest:
    """An SAE that a command needs."""

    name: str
    """As the user typed it."""
    plan: Plan | None = None
    """How a variant is trained. None for a folder, and for an SAE on the Hub."""

    @property
    def key(self) -> Path | str:
        """Equal for two requests exactly when they are for the same SAE."""
        return self.plan.sae_folder if self.plan else self.name


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `user/repo:sae_id`."""
    repo, colon, sae_id = name.partition(":")
    return bool(colon and sae_id) and repo.count("/") == 1 and not name.startswith((".", "/"))


def is_folder(name: str) -> bool:
    """Whether a name is that of an existing folder."""
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # a name too long for the file system
        return False


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
        names: variants, folders or Hub ids. A variant gives one request for each grid point and seed.
        target: the language model, hook and text that variants are trained on.
        overrides: config fields that replace those of the target's recipe.
        grid_points: values of the config fields that the command's grid varies.
        seeds: seeds of variants.
        trained: root of trained SAEs; None for the default.

    Raises:
        UsageError: an unknown name, or a field that none of the variants has.
    """
    known = scorable_names()
    for name in names:
        if name in known or is_folder(name) or is_hub_id(name):
            continue
        if "/" in name:
            raise UsageError(f"no folder {name!r}; an SAE on the Hub is written user/repo:sae_id")
        check_name("SAE", name, known)
    overrides = dict(overrides or {})
    if "seed" in overrides:
        raise UsageError("--train.seed is written --seeds")
    variants = [name for name in names if name in known]
    plans = make_plans(variants, target, overrides, list(grid_points), list(seeds), trained) if variants else []
    requests: list[SAERequest] = []
    for name in names:
        planned = [SAERequest(name, plan) for plan in plans if plan.full_name == name]
        requests += planned if name in known else [SAERequest(name)]
    return requests


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
        elif request.plan.folder not in failures:
            located.append(_locate_plan(request.plan, axes))
    return located, list(failures.values())


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
    missing = [plan for plan in plans if not plan.is_trained or plan.lacks(snapshots)]
    for plan in missing:
        seed = plan.settings.seed
        if plan.is_trained:
            print(f"{plan.label} (seed {seed}) has no snapshots: training it again to record them")
        else:
            print(f"{plan.label} is not trained on {plan.target.name} with seed {seed} yet: training it first")
    try:
        train_plans(missing, device, snapshots=snapshots)
    except TrainingFailed as failed:
        return failed.failures
    return {}


def _locate_plan(plan: Plan, axes: Iterable[str]) -> LocatedSAE:
    record = json.loads((plan.folder / RECORD).read_text())
    return LocatedSAE(
        label=plan.label,
        folder=plan.sae_folder,
        seed=plan.settings.seed,
        training_tokens=record["trained_tokens"],
        kind=plan.kind,
        learns=config_hooks(find_variant(plan.name).config_class).learns,
        grid_point={field: plan.values[field] for field in axes if field in plan.values},
        plan=plan,
    )


def locate_snapshot(folder: Path) -> LocatedSAE:
    """Locate a snapshot of an SAE's training, which needs no label."""
    return LocatedSAE(folder.name, folder)


def locate_name(name: str) -> LocatedSAE:
    """Locate the SAE in a folder or, after downloading it, on the Hub.

    Raises:
        UsageError: there is no SAE, it cannot be loaded, or the Hub cannot be reached.
    """
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    folder = Path(name) if is_folder(name) else _download(name)
    load(folder)
    metadata = json.loads((folder / "cfg.json").read_text()).get("metadata", {})
    _, config_class = SAE_TRAINING_CLASS_REGISTRY.get(metadata.get("training_architecture"), (None, None))
    return LocatedSAE(
        label=_folder_label(folder) if is_folder(name) else name,
        folder=folder,
        seed=metadata.get("seed"),
        training_tokens=metadata.get("training_tokens"),
        kind=_recorded_kind(folder),
        learns=config_class is None or config_hooks(config_class).learns,
    )


def _folder_label(folder: Path) -> str:
    """Label of a folder: its name with the variant of an SAE that was trained here, else with a hash of the weights."""
    name, record_file = folder.resolve().name, folder / RECORD
    if not record_file.is_file():
        return f"{name}-{hash_files([folder / 'sae_weights.safetensors'])[:6]}"
    record = json.loads(record_file.read_text())
    if part := record.get("part", ""):
        return f"{record['name']}:{part}-{folder.resolve().parent.name}"
    return f"{record['name']}-{name}"


def _recorded_kind(folder: Path) -> str | None:
    """Hash of the training record, which training and publishing leave beside the weights, without its seed."""
    for name in (RECORD, "runner_cfg.json"):
        try:
            return hash_kind(json.loads((folder / name).read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    from sae_variants.language_model.hub import hub_errors

    repo, _, sae_id = hub_id.partition(":")
    with hub_errors(f"the SAE {hub_id}"):
        folder = Path(snapshot_download(repo, allow_patterns=[f"{sae_id}/*"])) / sae_id
    if not folder.is_dir():
        raise UsageError(f"the repository {repo} on the Hub has no folder {sae_id!r}")
    return folder
