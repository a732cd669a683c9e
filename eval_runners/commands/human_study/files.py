"""The files of a study: the key that `make` writes, and the answers that the page and `judge` save."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval_runners.measures.intrusion import CHOICES
from sae_variants.common.errors import UsageError

COMMAND = ["python", "-m", "eval_runners", "human-study"]


def read_answers(path: Path) -> dict[str, Any]:
    """Read the answers of one rater.

    Returns:
        `study`, `rater`, `kind` ("human" or "model"), and `answers`, question -> number of an excerpt.

    Raises:
        UsageError: the file cannot be read, or lacks any of these.
    """
    content = _read(path, "a file of answers")
    answers = content.get("answers")
    if not isinstance(answers, dict) or not isinstance(content.get("rater"), str):
        raise UsageError(f"{path} is not a file of answers: give what the page saves")
    if content.get("kind") not in ("human", "model"):
        raise UsageError(f"{path} does not say whether its rater is a human or a model")
    for name, choice in answers.items():
        if isinstance(choice, bool) or not isinstance(choice, int) or not 0 <= choice < CHOICES:
            raise UsageError(
                f"{path}: the answer to question {name} is {choice!r}, not a number from 0 to {CHOICES - 1}"
            )
    return content


def read_key(path: Path) -> dict[str, Any]:
    """Read the key of a study.

    Returns:
        `study`, `items` (question -> excerpts), `known` (question -> solution), and `saes` (an unscored result each).

    Raises:
        UsageError: the file cannot be read, is no key, or has been changed.
    """
    content = _read(path, "a key")
    kinds = (("items", dict), ("known", dict), ("saes", list))
    if not all(isinstance(content.get(name), kind) for name, kind in kinds):
        raise UsageError(f"{path} is not a key: give the .key.json that `human-study make` wrote beside the page")
    if not _is_intact(content):
        raise UsageError(f"{path} is a key that has been changed: make the study again")
    return content


def find_key(study: str, files: Iterable[Path]) -> dict[str, Any]:
    """Read the key of a study, which lies beside the answers or in the working directory.

    Raises:
        UsageError: it lies in neither.
    """
    for folder in dict.fromkeys([*(file.parent for file in files), Path()]):
        for path in sorted(folder.glob("*.key.json")):
            try:
                key = read_key(path)
            except UsageError:
                continue
            if key["study"] == study:
                return key
    raise UsageError("the key of this study lies neither beside the answers nor here: give --key FILE")


def _read(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON file that names a study."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not {kind}: it is no JSON") from error
    if not isinstance(content, dict) or not isinstance(content.get("study"), str):
        raise UsageError(f"{path} is not {kind}: it names no study")
    return content


def _is_intact(key: dict[str, Any]) -> bool:
    """Whether a key has a solution for each question, and results that lie within the folder of results."""
    try:
        solved = key["known"].keys() == key["items"].keys() and all(
            0 <= known["intruder"] < CHOICES and 0 <= known["sae"] < len(key["saes"]) and "has_latent" in known
            for known in key["known"].values()
        )
        paths = [Path(sae["path"]) for sae in key["saes"] if {"learns", "result"} <= sae.keys()]
    except (KeyError, TypeError, AttributeError):
        return False
    inside = not any(path.is_absolute() or ".." in path.parts for path in paths)
    return solved and inside and len(paths) == len(key["saes"])
