"""A result file: SAEBench's envelope with ours inside it, where it lies, and how it is written.

    <output>/<target>/<evaluation>/<sae>/<hash>.json

The hash is of the SAE's weights and of everything else that decides the numbers, so that a result of other weights is
never taken for it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval_runners.contract import contract as _contract
from sae_variants.common import hashing as _hash
from sae_variants.common.errors import UsageError
from sae_variants.common.files import write_whole
from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Place:
    """Where the results of one evaluation with one set of settings go, and what they say about their origin."""

    root: Path
    evaluation: str
    target: Target
    settings: dict[str, Any]
    versions: dict[str, str]
    """Of what the evaluation reads beside the target's text."""
    device: str
    command: list[str]
    commit: str | None = field(default_factory=lambda: commit())
    """When the work began, whatever is committed meanwhile."""

    def path(self, sae: str, weight_hash: str) -> Path:
        from sae_variants.language_model.load import model_id

        key = {
            "weights": weight_hash,
            "config": self.settings,
            "model": model_id(self.target.model_name),
            "hook_name": self.target.hook_name,
            "text": self.target.text_id,
            "text_version": self.target.text_version,
            "sae_bench": version("sae-bench"),
            **({"versions": self.versions} if self.versions else {}),
        }
        digest = _hash.of_value(key)
        return self.root / self.target.name / self.evaluation / sae / f"{digest}.json"

    def envelope(
        self, evaluation: _contract.Evaluation, found: Any, weight_hash: str, seconds: float
    ) -> dict[str, Any]:
        """SAEBench's result with ours under `eval_result_unstructured`: added metrics, verdict, provenance."""
        failures = list(evaluation.failures)
        if found.training_tokens is not None and found.training_tokens <= 0:
            failures.insert(0, "trained on 0 tokens")
        result = dict(evaluation.output)
        result["sae_lens_id"] = found.label
        result["sae_lens_release_id"] = self.target.name
        result["eval_result_unstructured"] = {
            **(evaluation.output.get("eval_result_unstructured") or {}),
            **finite(evaluation.ours),
            "files": sorted(evaluation.files),
            "trained": not failures,
            "not_trained_because": failures,
            "provenance": {
                "command": shlex.join(without_paths(self.command)),
                "commit": self.commit,
                "versions": {
                    p: version(p) for p in ("sae-variants", "sae-lens", "sae-bench", "transformer-lens", "torch")
                },
                "device": self.device,
                "seconds": round(seconds, 1),
                "seed": found.seed,
                "training_tokens": found.training_tokens,
                "weight_hash": weight_hash,
                "kind": found.kind,
                "target": self.target.name,
                "hook_name": self.target.hook_name,
                "text": self.target.text_id,
                "text_version": self.target.text_version,
                "read": self.versions,
            },
        }
        return result


ABSOLUTE_PATH = re.compile(
    r"""(?:file:(?://)?(?=/)|(?<![\w/.])(?:~\w*|[A-Za-z]:|(?:\./)?\.\.)?)[/\\](?:[^\s/\\'"]+[/\\])*([^\s/\\'"]+)[/\\]?"""
)
WHOLE = re.compile(r"""(?:~|[A-Za-z]:)?[/\\](?:[^/\\'"\n]+[/\\])+([^/\\'"\n]+)""")
"""A text that is nothing but a path, spaces and all."""


def without_paths(value: Any) -> Any:
    """The same with every absolute path in it cut down to its last part: a result may be published."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    if (whole := WHOLE.fullmatch(value)) and " -" not in value:
        return whole[1]
    return ABSOLUTE_PATH.sub(r"\1", value)


def path_name(label: str) -> str:
    """An SAE's name as a folder: its label without what stands in brackets."""
    return label.partition("[")[0].replace(":", "_").replace("/", "_")


def validate(output_class: type, result: dict[str, Any]) -> None:
    """The result must load as SAEBench's own output class."""
    from pydantic import TypeAdapter

    TypeAdapter(output_class).validate_python(result)


def finite(value: Any) -> Any:
    """The same with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def commit() -> str | None:
    """Commit of this package's own repository, `+` if files differ from it; None if it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def writable(root: Path) -> Path:
    """The folder, made if need be. UsageError, before any work, if nothing can be written to it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(2**20))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write results to {root}: {error.strerror}; give another --output") from error
    return root


def write(path: Path, result: dict[str, Any], files: dict[str, bytes]) -> None:
    """The result, after the files that lie beside it, each whole or not at all."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    for ending, content in {**files, "json": text.encode()}.items():
        write_whole(path.with_suffix(f".{ending}"), content, "--output")
