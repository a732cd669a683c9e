"""SAEs that somebody saved: check a name, and locate its SAE in a folder, on the Hub or in SAELens' registry."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_runners.contract.located import LocatedSAE
from sae_variants.common.errors import UsageError, check_name
from sae_variants.formats.hub import parse_hub_id
from sae_variants.formats.releases import check_known, check_release, list_release, split_release
from sae_variants.formats.source import is_folder, open_source
from sae_variants.registry.contract import config_hooks
from sae_variants.registry.saved_config import read_config
from sae_variants.registry.variants import check_variant_name, own_variant_names, scorable_names
from sae_variants.training.plan import RECORD, TRACE, hash_kind

PUBLISHED_RECORD = "runner_cfg.json"
"""Name of the training record in a published repository."""
TRAINED_HERE = re.compile("[0-9a-f]{12}")
"""Names of folders that training gives."""
SLIP = 0.75
"""Likeness of a name and a variant's, from 0 to 1, from which on it is that one misspelt; no release is so alike."""


def check_form(name: str) -> None:
    """Check a name as far as it can be without the seconds of importing SAELens."""
    if is_folder(name) or parse_hub_id(name):
        return
    if "/" in name.partition(":")[0]:
        raise UsageError(
            f"no folder {name!r}; an SAE on the Hub is written user/repo:path, a released one RELEASE:SAE_ID"
        )
    if not name or difflib.get_close_matches(name, own_variant_names(), cutoff=SLIP):
        check_variant_name(name)


def check_source(name: str) -> None:
    """Check that a name that `check_form` lets pass is a folder, an SAE on the Hub or in SAELens' registry.

    It is checked as far as no network is needed.
    """
    if is_folder(name) or parse_hub_id(name):
        return
    if parts := split_release(name):
        if not parts[1]:
            print("\n".join(list_release(parts[0])))
        check_release(*parts)
    else:
        variants = scorable_names()
        check_known(name, variants)
        check_name("SAE", name, variants)


def locate_name(name: str) -> LocatedSAE:
    """Locate an SAE that somebody saved: in a folder, on the Hub or in SAELens' registry.

    Raises:
        UsageError: there is no SAE, it cannot be loaded or is no autoencoder, or the Hub cannot be reached.
    """
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    source = open_source(name, beside=(RECORD, PUBLISHED_RECORD, TRACE))
    located = LocatedSAE(name, source.folder)
    try:
        located.load("cpu")
    except UsageError as error:
        raise error if name in str(error) else UsageError(f"{name}: {error}") from error
    metadata = read_config(source.folder).get("metadata", {})
    _, config_class = SAE_TRAINING_CLASS_REGISTRY.get(metadata.get("training_architecture"), (None, None))
    return replace(
        located,
        label=_folder_label(Path(name), source.digest) if is_folder(name) else str(parse_hub_id(name) or name),
        seed=_whole(metadata.get("seed")),
        training_tokens=_whole(metadata.get("training_tokens")),
        kind=_recorded_kind(source.folder),
        learns=config_class is None or config_hooks(config_class).learns,
    )


def _whole(value: Any) -> int | None:
    """Return a whole number of an SAE's metadata, where anybody may have written anything; None for anything else."""
    return value if type(value) is int else None


def _folder_label(folder: Path, digest: str) -> str:
    """Label of a folder: its name, with the variant of an SAE that was trained here, else with its hash.

    An SAE that was trained here and lies where training put it needs no hash: the folder's name is one.
    """
    folder = folder.resolve()
    try:
        record = json.loads((folder / RECORD).read_text())
        variant, part = record["name"], record.get("part", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder.name}-{digest[:6]}"
    name = folder.parent.name if part else folder.name
    label = f"{variant}:{part}-{name}" if part else f"{variant}-{name}"
    return label if TRAINED_HERE.fullmatch(name) else f"{label}-{digest[:6]}"


def _recorded_kind(folder: Path) -> str | None:
    """Hash of the training record, which training and publishing leave beside the weights, without its seed."""
    for name in (RECORD, PUBLISHED_RECORD):
        try:
            return hash_kind(json.loads((folder / name).read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None
