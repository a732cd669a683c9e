"""Reads and uploads a repository on the Hugging Face Hub; every refusal ends in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from eval_runners.contract.contract import Result
from eval_runners.store.read import read_results
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hub import is_transport

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REFUSALS = {
    401: "the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there: give it write access, or another --repo",
    404: "there is no such repository, or you may not see it: check --repo",
    409: "the repository has changed in the meantime: run the command again",
    429: "the Hub asks for patience: run the command again in a few minutes",
}
"""HTTP status -> its meaning here, and the mend."""


@contextlib.contextmanager
def _one_line_errors(repo: str) -> Iterator[None]:
    """Turn refusals of the Hub, and errors of the network, into a UsageError."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UsageError(f"cannot publish to {repo}: {REFUSALS[401]}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        meaning = REFUSALS.get(status, "the Hub failed: run the command again")
        raise UsageError(f"cannot publish to {repo} (HTTP {status}): {meaning}") from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not is_transport(cause):  # an upload that breaks off is wrapped
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UsageError(f"cannot reach the Hub ({type(error).__name__}): check the network, then run again") from error


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
    with _one_line_errors(repo):
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
    with _one_line_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        stale = [f"{name}/*" for name in replaced]
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="SAEs, results and card", delete_patterns=stale or None
        )
