"""A result file: SAEBench's envelope with ours inside it, where it lies, and how it is written.

    <output>/<target>/<evaluation>/<sae>/<hash>.json

The hash is of the SAE's weights and of everything else that decides the numbers, so that a result of other weights is
never taken for it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Evaluation
from eval_runners.store.paths import without_paths
from sae_variants.common.files import write_atomically
from sae_variants.common.hashing import hash_value
from sae_variants.common.values import finite_or_none
from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class ResultLocation:
    """Where the results of one evaluation with one set of settings go, and what they say about their origin."""

    root: Path
    evaluation: str
    target: Target
    settings: dict[str, Any]
    versions: dict[str, str]
    """Of what the evaluation reads beside the target's text."""
    device: str
    command: list[str]
    commit: str | None = field(default_factory=lambda: package_commit())
    """When the work began, whatever is committed meanwhile."""

    def path(self, sae: str, weight_hash: str) -> Path:
        from sae_variants.language_model.folders import model_id

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
        digest = hash_value(key)
        return self.root / self.target.name / self.evaluation / sae / f"{digest}.json"

    def envelope(self, evaluation: Evaluation, found: Any, weight_hash: str, seconds: float) -> dict[str, Any]:
        """SAEBench's result with ours under `eval_result_unstructured`: added metrics, verdict, provenance."""
        failures = list(evaluation.failures)
        if found.training_tokens is not None and found.training_tokens <= 0:
            failures.insert(0, "trained on 0 tokens")
        result = dict(evaluation.output)
        result["sae_lens_id"] = found.label
        result["sae_lens_release_id"] = self.target.name
        result["eval_result_unstructured"] = {
            **(evaluation.output.get("eval_result_unstructured") or {}),
            **finite_or_none(evaluation.ours),
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


def validate_result(output_class: type, result: dict[str, Any]) -> None:
    """The result must load as SAEBench's own output class."""
    from pydantic import TypeAdapter

    TypeAdapter(output_class).validate_python(result)


def package_commit() -> str | None:
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


def write_result(path: Path, result: dict[str, Any], files: dict[str, bytes]) -> None:
    """The result, after the files that lie beside it, each whole or not at all."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    for ending, content in {**files, "json": text.encode()}.items():
        write_atomically(path.with_suffix(f".{ending}"), content, "--output")
