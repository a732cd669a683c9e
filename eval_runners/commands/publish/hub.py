"""Reads and uploads a repository on the Hugging Face Hub; every refusal ends in one line."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from eval_runners.contract.contract import Result
from eval_runners.store.read import read_results
from sae_variants.common.hub_errors import WRITING, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def _publishing(repo: str) -> AbstractContextManager[None]:
    """Return the context that turns refusals of the Hub, and errors of the network, into a UsageError."""
    return hub_errors(f"cannot publish to {repo}", WRITING)


def _api(endpoint: str | None = None, token: str | None = None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint, token, library_name="sae-variants", library_version=version("sae-variants"))


def read_repository(repo: str) -> dict[str, list[Result]]:
    """Read the results of the SAEs that a repository holds.

    Returns:
        Id of the SAE -> its results. Empty where there is no such repository.

    Raises:
        UsageError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    results: dict[str, list[Result]] = {}
    with _publishing(repo):
        api = _api()
        try:
            files = sorted(api.list_repo_files(repo))
        except RepositoryNotFoundError:
            return {}
        for sae_id in (file.removesuffix("/cfg.json") for file in files if file.endswith("/cfg.json")):
            names = [file for file in files if file.startswith(f"{sae_id}/results/") and file.endswith(".json")]
            paths = [Path(api.hf_hub_download(repo, name)) for name in names]
            results[sae_id] = read_results(sorted({path.parent for path in paths}))[0]
    return results


def upload(
    folder: Path,
    repo: str,
    private: bool,
    endpoint: str | None = None,
    token: str | None = None,
    replaced: Iterable[str] = (),
) -> None:
    """Upload a folder as one commit, so that an upload that is cut off leaves nothing behind.

    Args:
        folder: holds the files.
        repo: repository on the Hub, created if it does not exist.
        private: create it as a private repository.
        endpoint: URL of the Hub; the default is that of huggingface_hub.
        token: the default is that of huggingface_hub.
        replaced: folders of the repository whose other files are deleted.

    Raises:
        UsageError: the Hub refuses, or cannot be reached.
    """
    api = _api(endpoint, token)
    with _publishing(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        stale = [f"{name}/*" for name in replaced]
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="SAEs, results and card", delete_patterns=stale or None
        )
