"""The files of a study: the key that `make` writes, and the answers that the page and `judge` save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval_runners.measures.intrusion import CHOICES
from sae_variants.common.errors import UsageError


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not {what}: it is no JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("study"), str):
        raise UsageError(f"{path} is not {what}: it names no study")
    return found


def read_answers(path: Path) -> dict[str, Any]:
    found = _read(path, "a file of answers")
    answers = found.get("answers")
    if not isinstance(answers, dict) or not isinstance(found.get("rater"), str):
        raise UsageError(f"{path} is not a file of answers: give what the page saves")
    if found.get("kind") not in ("human", "model"):
        raise UsageError(f"{path} does not say whether its rater is a human or a model")
    for name, choice in answers.items():
        if isinstance(choice, bool) or not isinstance(choice, int) or not 0 <= choice < CHOICES:
            raise UsageError(
                f"{path}: the answer to question {name} is {choice!r}, not a number from 0 to {CHOICES - 1}"
            )
    return found


def read_key(path: Path) -> dict[str, Any]:
    found = _read(path, "a key")
    if not all(isinstance(found.get(name), kind) for name, kind in (("items", dict), ("known", dict), ("saes", list))):
        raise UsageError(f"{path} is not a key: give the .key.json that `human-study make` wrote beside the page")
    try:
        whole = found["known"].keys() == found["items"].keys() and all(
            0 <= known["intruder"] < CHOICES and 0 <= known["sae"] < len(found["saes"]) and "has_latent" in known
            for known in found["known"].values()
        )
        paths = [Path(one["path"]) for one in found["saes"] if {"learns", "result"} <= one.keys()]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is a key that has been changed: make the study again") from error
    if not whole or len(paths) < len(found["saes"]) or any(one.is_absolute() or ".." in one.parts for one in paths):
        raise UsageError(f"{path} is a key that has been changed: make the study again")
    return found


def key_of(study: str, files: list[Path]) -> dict[str, Any]:
    """The key of a study that lies beside the answers, or here."""
    for folder in dict.fromkeys([*(file.parent for file in files), Path()]):
        for path in sorted(folder.glob("*.key.json")):
            try:
                found = read_key(path)
            except UsageError:
                continue
            if found["study"] == study:
                return found
    raise UsageError("the key of this study lies neither beside the answers nor here: give --key FILE")
