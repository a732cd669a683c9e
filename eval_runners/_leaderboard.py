"""Reads results; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def comparable(root: Path, target: str, evaluation: str, like: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The newest result of every other SAE on that target whose evaluation settings are those of `like`."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / target / evaluation).glob("*/*.json")):
        try:
            result = json.loads(path.read_text())
            label, when = result["sae_lens_id"], result["datetime_epoch_millis"]
            same = result["eval_config"] == like["eval_config"]
        except (ValueError, KeyError, TypeError):
            print(f"{path} is not a result of {evaluation}; left out of the table")
            continue
        if same and (label not in found or found[label]["datetime_epoch_millis"] < when):
            found[label] = result
    return found
