"""Result files: SAEBench's envelope with our values inside it, where they lie, and how they are written.

    <output>/<target>/<evaluation>/<sae>/<hash>.json

The hash is of the SAE's weights and of everything else that decides the numbers. So a result of other weights is never
taken for this SAE's.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Result
from eval_runners.contract.located import LocatedSAE
from eval_runners.store.paths import without_paths
from sae_variants.common.files import write_atomically
from sae_variants.common.hashing import hash_value
from sae_variants.common.values import finite_or_none
from sae_variants.language_model.folders import model_id
from sae_variants.language_model.hub import model_revision
from sae_variants.language_model.hub_text import dataset_commit
from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class ResultLocation:
    """Location and provenance of the results of one evaluation with one set of settings."""

    root: Path
    """Root of all results, such as `results/runs`."""
    evaluation: str
    """Name of the evaluator."""
    target: Target
    """The language model, hook and text."""
    settings: Mapping[str, Any]
    """The evaluator's settings by field."""
    versions: Mapping[str, str]
    """Versions, by name, of the data that the evaluation reads beside the target's text."""
    command: Sequence[str]
    """Arguments of the command line that gave the results."""
    evaluator_version: int = 1
    """`Evaluator.version`."""
    commit: str | None = field(default_factory=lambda: package_commit())
    """The package's commit when the work begins, whatever is committed meanwhile."""

    @property
    def folder(self) -> Path:
        """`<root>/<target>/<evaluation>`."""
        return self.root / self.target.name / self.evaluation

    def path(self, located: LocatedSAE) -> Path:
        """The result file of one SAE."""
        key = {
            "weights": located.weight_hash,
            "config": dict(self.settings),
            "model": model_id(self.target.model_name),
            "hook_name": self.target.hook_name,
            "text": self.target.text_id,
            "text_version": self.target.text_version,
            "sae_bench": version("sae-bench"),
            **({"versions": dict(self.versions)} if self.versions else {}),
            **({"evaluator_version": self.evaluator_version} if self.evaluator_version > 1 else {}),
            **({"eval_seed": self.target.eval_seed} if self.target.eval_seed else {}),
        }
        return self.folder / folder_name(located.label) / f"{hash_value(key)}.json"

    def complete(self, output: Result, evaluation: Evaluation, context: Context, seconds: float) -> Result:
        """Add values, the verdict and provenance to an output, under `eval_result_unstructured`.

        Args:
            output: the numbers in SAEBench's envelope.
            evaluation: holds the added values and the reasons to treat the SAE as untrained.
            context: names the SAE and the device. Of an SAE that exists in memory only, the caller sets the ids.
            seconds: wall-clock time of the evaluation.
        """
        located, failures = context.located, list(evaluation.failures)
        if located and located.training_tokens is not None and located.training_tokens <= 0:
            failures.insert(0, "trained on 0 tokens")
        unstructured = {
            **(output.get(UNSTRUCTURED) or {}),
            **finite_or_none(dict(evaluation.unstructured)),
            "files": sorted(evaluation.files),
            "trained": not failures,
            "not_trained_because": failures,
            "provenance": self.provenance(located, context.device, seconds),
        }
        ids = {"sae_lens_id": located.label, "sae_lens_release_id": self.target.name} if located else {}
        return {**output, **ids, UNSTRUCTURED: unstructured}

    def provenance(self, located: LocatedSAE | None, device: str, seconds: float) -> dict[str, Any]:
        """Versions, command, device, duration, SAE and text behind a result."""
        packages = ("sae-variants", "sae-lens", "sae-bench", "transformer-lens", "torch")
        return {
            "command": shlex.join(without_paths(list(self.command))),
            "commit": self.commit,
            "versions": {package: version(package) for package in packages},
            "device": device,
            "evaluator_version": self.evaluator_version,
            "eval_seed": self.target.eval_seed,
            "seconds": round(seconds, 1),
            **{name: getattr(located, name, None) for name in ("seed", "training_tokens", "weight_hash", "kind")},
            "target": self.target.name,
            "model": model_revision(self.target.model_name),
            "hook_name": self.target.hook_name,
            "text": self.target.text_id,
            "text_version": self.target.text_version,
            "text_revision": dataset_commit(self.target.dataset),
            "read": dict(self.versions),
        }


def validate_result(output_class: type, result: Result) -> None:
    """Check that a result loads as an output class of SAEBench's kind.

    Raises:
        pydantic.ValidationError: it does not.
    """
    from pydantic import TypeAdapter

    TypeAdapter(output_class).validate_python(result)


def package_commit() -> str | None:
    """Commit of this package's repository, with `+` if files differ from it; None if it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_result(path: Path, result: Result, files: Mapping[str, bytes]) -> None:
    """Write a result after the files that lie beside it, each whole or not at all.

    Args:
        path: the result's file, which ends in `.json`.
        result: JSON values without NaN.
        files: content by the end of the file's name.
    """
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    for ending, content in {**files, "json": text.encode()}.items():
        write_atomically(path.with_suffix(f".{ending}"), content, "--output")


def folder_name(label: str) -> str:
    """Folder name of an SAE: its label without the fields in brackets."""
    return label.partition("[")[0].replace(":", "_").replace("/", "_")
