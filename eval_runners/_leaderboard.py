"""Result files -> the rows that may stand in one table. Pure: imports no torch, writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _conditions(result: dict[str, Any]) -> tuple[Any, ...]:
    hook_name = result["eval_result_unstructured"]["provenance"]["hook_name"]
    return result["eval_config"], result["sae_cfg_dict"]["d_sae"], hook_name


def _seed(result: dict[str, Any]) -> int | None:
    return result["eval_result_unstructured"]["provenance"]["seed"]


def _tokens(result: dict[str, Any]) -> int | None:
    return result["eval_result_unstructured"]["provenance"]["training_tokens"]


def comparable(root: Path, target: str, evaluation: str, like: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The newest result of every SAE on that target that was trained and evaluated like `like`.

    That is: same evaluation settings, hook and width and, where they are known, seed and number of training tokens.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / target / evaluation).glob("*/*.json")):
        try:
            result = json.loads(path.read_text())
            label, when = result["sae_lens_id"], result["datetime_epoch_millis"]
            same = _conditions(result) == _conditions(like)
            same = same and (not _tokens(like) or _tokens(result) in (0, _tokens(like)))
            same = same and (_seed(like) is None or _seed(result) == _seed(like))
        except (ValueError, KeyError, TypeError):
            print(f"{path} is not a result of {evaluation}; left out of the table")
            continue
        if same and (label not in found or found[label]["datetime_epoch_millis"] < when):
            found[label] = result
    return found
