"""What a process knows of the launch that it belongs to: whether others share its work, and what failed for them.

A launch (`sae_variants.launch`) runs one command in several processes. An environment variable names its folder.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from sae_variants.common.files import new_file
from sae_variants.common.hashing import hash_value

LAUNCH = "SAE_VARIANTS_LAUNCH"
"""Environment variable with the folder of the launch."""
WORKER, NEIGHBOURS = "SAE_VARIANTS_WORKER", "SAE_VARIANTS_NEIGHBOURS"
"""Environment variables of a worker: how many workers there are, and how many of them use its device."""
FAILURES = "failures"


def is_worker() -> bool:
    """Return whether this process is a worker: it does what nobody has claimed, and waits for nobody."""
    return bool(os.environ.get(WORKER))


def fair_share(count: int) -> int:
    """Return how many of so many pieces of work each worker does if all do equally many, rounded up."""
    return math.ceil(count / int(os.environ.get(WORKER) or 1))


def device_share() -> float:
    """Return the share of a device's free memory that is this process's, where other workers use the device, too."""
    return 1 / int(os.environ.get(NEIGHBOURS) or 1)


def failure_of(path: Path) -> str:
    """Return why a process of this launch could not make a file or folder; empty if none tried, or none failed."""
    file = _failure_file(path)
    return json.loads(file.read_text())["reason"] if file and file.exists() else ""


def record_failure(path: Path, reason: str) -> None:
    """Tell the other processes of this launch why a file or folder cannot be made, so that they do not try."""
    if file := _failure_file(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as partial:
            partial.write_text(json.dumps({"path": str(path), "reason": reason}))


def failures_in(launch: Path) -> list[tuple[str, str]]:
    """Return what the processes of a launch could not make: path and reason, of all that is recorded."""
    records = [json.loads(file.read_text()) for file in sorted((launch / FAILURES).glob("*.json"))]
    return [(record["path"], record["reason"]) for record in records]


def _failure_file(path: Path) -> Path | None:
    launch = os.environ.get(LAUNCH)
    return Path(launch) / FAILURES / f"{hash_value(str(path.absolute()))}.json" if launch else None
