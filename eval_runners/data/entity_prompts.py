"""Entities, their attributes, and prompts that ask for one: the files of RAVEL, from the Hub or a folder.

For each kind of entity, such as `city`, there are four JSON files: `ravel_city_entity_attributes.json` maps an entity
to its attributes, `ravel_city_attribute_to_prompts.json` an attribute to prompts with `%s` for the entity, and the two
others name the part of entities and of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files
from sae_variants.common.hub_errors import hub_errors

FILES = ("attribute_to_prompts", "prompt_to_split", "entity_attributes", "entity_to_split")


@dataclass(frozen=True)
class Prompts:
    """Files of entities and prompts."""

    folder: Path
    """Holds the files."""
    version: str
    """Hash of the files."""


def file_names(kind: str) -> list[str]:
    """Return the names of the files of one kind of entity."""
    return [f"ravel_{kind}_{name}.json" for name in FILES]


def find_prompts(name: str, attributes: Mapping[str, Sequence[str]]) -> Prompts:
    """Return the prompts of a dataset on the Hub or of a folder.

    Args:
        name: Of the dataset, such as `adamkarvonen/ravel_prompts`, or the path of a folder.
        attributes: Attributes that are needed, by kind of entity.

    Raises:
        UsageError: there are no such files, or they lack an attribute.
    """
    local = Path(name)
    names = [file for kind in attributes for file in file_names(kind)]
    folder = local if local.is_dir() else _downloaded(name, tuple(names))
    if missing := [file for file in names if not (folder / file).is_file()]:
        raise UsageError(f"--prompts {name} has no file {missing[0]}: check --prompts and --attributes")
    for kind, wanted in attributes.items():
        templates, _, entities, _ = (_read(folder / file) for file in file_names(kind))
        for attribute in wanted:
            check_name(f"attribute of {kind} in --prompts {name}", attribute, list(templates))
            if lacking := [entity for entity, held in entities.items() if attribute not in held]:
                raise UsageError(f"--prompts {name}: the {kind} {lacking[0]!r} has no attribute {attribute!r}")
            if odd := [template for template in templates[attribute] if template.count("%s") != 1]:
                raise UsageError(f"--prompts {name}: each prompt must hold %s once, unlike {odd[0]!r}")
    return Prompts(folder, hash_files([folder / file for file in names]))


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(held, dict) or not held:
        raise UsageError(f"{path} must hold a JSON object that is not empty")
    return held


@cache
def _downloaded(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    from sae_variants.language_model.hub_text import NAME, parse_hub_dataset

    if not NAME.fullmatch(name):
        raise UsageError(f"--prompts {name} is neither a folder nor a dataset on the Hub, such as ORG/NAME")
    dataset = parse_hub_dataset(name)
    with hub_errors(f"cannot get the prompts {name} on the Hugging Face Hub", otherwise="give --prompts FOLDER"):
        repo, revision = dataset.repo, dataset.revision
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=[*files]))
