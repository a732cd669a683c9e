"""From what a user types to an SAE: a variant's name, a folder, or `user/repo:sae_id` on the Hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval_runners.store.paths import folder_name
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.language_model.target import Target
from sae_variants.registry.build import load
from sae_variants.registry.variants import find_variant, scorable_names
from sae_variants.training.grid import GridPoint, make_plans
from sae_variants.training.plan import RECORD, Plan, hash_kind
from sae_variants.training.train import TrainingFailed, train_plans


@dataclass(frozen=True)
class LocatedSAE:
    """An SAE that lies on disk; its weights are read when they are needed."""

    label: str
    """Its name in tables and, with `:` and `/` as `_`, in paths."""
    folder: Path
    seed: int | None
    training_tokens: int | None
    """None where the SAE does not say."""
    kind: str | None = None
    """Hash of what it was trained with, but for the seed; None for one that was not trained here."""
    learns: bool = True
    """False for `random`, which may be untrained."""
    cell: GridPoint = field(default_factory=dict)
    """The fields of a grid that make it what it is."""
    plan: Plan | None = None
    """How it was trained, where a variant's name was given."""

    @property
    def path_name(self) -> str:
        return folder_name(self.label)

    @cached_property
    def weight_hash(self) -> str:
        """Hash of config and weights: a result belongs to these and no others."""
        return hash_files(sorted(self.folder.glob("sae_weights.safetensors")) + sorted(self.folder.glob("cfg.json")))

    def load(self, device: str) -> Any:
        """The SAE in inference form; decoder rows of unit norm, as SAEBench has them for SAEs that it loads."""
        sae = load(self.folder, device)
        with contextlib.suppress(NotImplementedError):
            sae.fold_W_dec_norm()
        return sae


def is_hub_id(name: str) -> bool:
    repo, colon, sae_id = name.partition(":")
    return bool(colon and sae_id) and repo.count("/") == 1 and not name.startswith((".", "/"))


def is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # a name too long for the file system
        return False


def resolve_requests(
    names: list[str], target: Target, overrides: GridPoint, cells: list[GridPoint], seeds: list[int], root: Any
) -> list[Plan | str]:
    """What the names stand for, in their order: plans of variants, or the name of a folder or of an SAE on the Hub.

    Raises:
        UsageError: a name that is nothing we know, or a field that none of the variants has.
    """
    known = scorable_names()
    for name in names:
        if name in known or is_folder(name) or is_hub_id(name):
            continue
        if "/" in name:
            raise UsageError(f"no folder {name!r}; an SAE on the Hub is written user/repo:sae_id")
        check_name("SAE", name, known)
    if "seed" in overrides:
        raise UsageError("--train.seed is written --seeds")
    variants = [name for name in names if name in known]
    plans = make_plans(variants, target, overrides, cells, seeds, root) if variants else []
    found: list[Plan | str] = []
    for name in names:
        found += [plan for plan in plans if plan.full_name == name] if name in known else [name]
    return found


def train_missing(
    wanted: list[Plan | str], axes: Iterable[str], device: str, snapshots: tuple[float, ...] = ()
) -> tuple[list[LocatedSAE], list[str]]:
    """The SAEs, those that are missing trained first, and what went wrong with those that cannot be.

    Args:
        axes: fields of a grid, whose values are kept beside each SAE.
        snapshots: shares of the training after which they are kept as well; one that was trained without is trained
            again, before anything is scored, so that what is scored and its snapshots are of one training.
    """
    there = {name: locate_name(name) for name in wanted if isinstance(name, str)}
    plans = [plan for plan in wanted if isinstance(plan, Plan)]
    missing = [plan for plan in plans if not plan.is_trained or plan.lacks(snapshots)]
    for plan in missing:
        seed = plan.settings.seed
        if plan.is_trained:
            print(f"{plan.label} (seed {seed}) was not looked at in its training: training it again")
        else:
            print(f"{plan.label} is not trained on {plan.target.name} with seed {seed} yet: training it first")
    failures: dict[Path, str] = {}
    try:
        train_plans(missing, device, snapshots=snapshots)
    except TrainingFailed as failed:
        failures = failed.failures
    found = [
        there[one] if isinstance(one, str) else _from_plan(one, axes)
        for one in wanted
        if isinstance(one, str) or one.folder not in failures
    ]
    return found, list(failures.values())


def _from_plan(plan: Plan, axes: Iterable[str]) -> LocatedSAE:
    record = json.loads((plan.folder / RECORD).read_text())
    learns = _learns(find_variant(plan.name).config_class)
    cell = {field: plan.values[field] for field in axes if field in plan.values}
    return LocatedSAE(
        plan.label, plan.sae_folder, plan.settings.seed, record["trained_tokens"], plan.kind, learns, cell, plan
    )


def _learns(config_class: type | None) -> bool:
    return getattr(config_class, "learns", True)


def locate_folder(folder: Path) -> LocatedSAE:
    """An SAE that lies beside another one and needs no name, such as a snapshot."""
    return LocatedSAE(folder.name, folder, None, None)


def locate_name(name: str) -> LocatedSAE:
    """The SAE in a folder or on the Hub, downloaded."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    if is_folder(name):
        folder, label = Path(name), Path(name).resolve().name
        record = folder / RECORD
        if record.is_file():
            said = json.loads(record.read_text())
            part = said.get("part", "")
            label = f"{said['name']}:{part}-{folder.resolve().parent.name}" if part else f"{said['name']}-{label}"
    else:
        folder, label = _download(name), name
    load(folder)
    metadata = json.loads((folder / "cfg.json").read_text()).get("metadata", {})
    _, config_class = SAE_TRAINING_CLASS_REGISTRY.get(metadata.get("training_architecture"), (None, None))
    if is_folder(name) and not (folder / RECORD).is_file():
        label = f"{label}-{hash_files([folder / 'sae_weights.safetensors'])[:6]}"
    learns, seed, tokens = _learns(config_class), metadata.get("seed"), metadata.get("training_tokens")
    return LocatedSAE(label, folder, seed, tokens, _recorded_kind(folder), learns)


def _recorded_kind(folder: Path) -> str | None:
    """What it was trained with, from the record that training and publishing leave beside the weights."""
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
