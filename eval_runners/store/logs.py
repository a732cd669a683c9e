"""Reads the logs of trainings, `train --log`, by the weight hash of the SAE that came out of each. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_variants.common.hashing import hash_files
from sae_variants.registry.saved_config import CONFIG, WEIGHTS
from sae_variants.training.log import LOG
from sae_variants.training.plan import RECORD

MOST_POINTS = 300
"""Reports of a training that are kept, evenly spaced; lines with held-out measurements stay."""

Line = dict[str, Any]
"""Numbers of one report, by name."""


def read_logs(root: Path) -> dict[str, list[Line]]:
    """Read the logs below a root of trained SAEs.

    Args:
        root: Holds `<target>/<SAE>/<hash>/log.jsonl` beside the weights.

    Returns:
        Weight hash -> lines of the log. The parts of a two-level SAE have the log of the training that made both.
    """
    logs: dict[str, list[Line]] = {}
    for path in sorted(root.glob(f"*/*/*/{LOG}")):
        lines = _thinned(list(_lines(path)))
        for record in path.parent.rglob(RECORD):
            files = [record.with_name(WEIGHTS), record.with_name(CONFIG)]
            if lines and all(file.is_file() for file in files):
                logs[hash_files(files)] = lines
    return logs


def _lines(path: Path) -> Iterator[Line]:
    """Lines of a log; one that a kill cut off is left out."""
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "tokens" in line:
            yield line


def _thinned(lines: list[Line]) -> list[Line]:
    every = max(1, -(-len(lines) // MOST_POINTS))
    return [
        line
        for number, line in enumerate(lines)
        if number % every == 0 or any(name.startswith("heldout") for name in line)
    ]
