"""SAEs on the Hub, `user/repo@revision:path`: only the files of the SAE's layout are downloaded."""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.formats.layouts import LAYOUTS, Layout, describe_missing
from sae_variants.language_model.hub import is_transport

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?:(?P<path>.+)")


@dataclass(frozen=True)
class HubId:
    """Where an SAE is on the Hub."""

    repo: str
    """`user/repo`."""
    path: str
    """Folder in the repository; `.` is its root."""
    revision: str | None = None
    """Branch, tag or commit; None for the newest commit of the main branch."""

    def __str__(self) -> str:
        """Return the id as a user types it."""
        return f"{self.repo}@{self.revision}:{self.path}" if self.revision else f"{self.repo}:{self.path}"

    def file(self, name: str) -> str:
        """Return the path in the repository of a file in the folder."""
        return str(PurePosixPath(self.path) / name)


def parse_hub_id(name: str) -> HubId | None:
    """Return the parts of `user/repo:path` or `user/repo@revision:path`; None if the name has another form."""
    match = HUB_ID.fullmatch(name)
    if not match or name.startswith((".", "/")):
        return None
    return HubId(match["repo"], match["path"].strip("/") or ".", match["revision"])


def download_sae(hub_id: HubId, beside: Collection[str] = ()) -> tuple[Path, Layout]:
    """Download an SAE, or take it from the local cache.

    Args:
        hub_id: Where it is.
        beside: Names of further files that are downloaded if the folder has them.

    Returns:
        The local folder and its layout.

    Raises:
        UsageError: The Hub cannot be reached or refuses, or the folder is in no layout that is known.
    """
    local: dict[str, Path | None] = {}

    def get(name: str) -> Path | None:
        if name not in local:
            local[name] = _download(hub_id, name)
        return local[name]

    with hub_refusals(hub_id.repo, hub_id.revision):
        for layout in LAYOUTS:
            files = [path for name in layout.files if (path := get(name))]
            if len(files) == len(layout.files):
                for name in beside:
                    get(name)
                return files[0].parent, layout
        found = [name for name, path in local.items() if path]
        raise UsageError(_why_none(hub_id, found))


def _download(hub_id: HubId, name: str) -> Path | None:
    """Download a file; None if the folder has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id.repo, hub_id.file(name), revision=hub_id.revision))
    except LocalEntryNotFoundError as error:
        if _is_cached(hub_id) and not isinstance(error.__cause__, HfHubHTTPError):
            return None  # offline, with the files of another layout in the cache
        raise
    except EntryNotFoundError:
        return None


def _is_cached(hub_id: HubId) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = {name for layout in LAYOUTS for name in layout.files}
    return any(
        isinstance(try_to_load_from_cache(hub_id.repo, hub_id.file(name), revision=hub_id.revision), str)
        for name in names
    )


def _why_none(hub_id: HubId, present: list[str]) -> str:
    """Return why a folder of a repository holds no SAE, with the nearest folders that do."""
    from huggingface_hub import HfApi

    where = f"the repository {hub_id.repo} on the Hub"
    if present:
        return f"{hub_id.path!r} in {where} is not a saved SAE: {describe_missing(present)}"
    weights = {layout.files[-1] for layout in LAYOUTS}
    paths = map(PurePosixPath, HfApi().list_repo_files(hub_id.repo, revision=hub_id.revision))
    folders = sorted({str(path.parent) for path in paths if path.name in weights})
    near = difflib.get_close_matches(hub_id.path, folders, n=3, cutoff=0.3) or folders[:3]
    hint = f"; SAEs are in {', '.join(near)}" if near else "; no folder of it holds an SAE in a layout that is known"
    more = f" and {len(folders) - len(near)} more" if len(folders) > len(near) else ""
    return f"{where} has no folder {hub_id.path!r} with an SAE{hint}{more}"


@contextlib.contextmanager
def hub_refusals(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the Hub refuses into a UsageError that names the repository, the reason and the remedy."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if not (reason := _describe_refusal(error, repo, revision)):
            raise
        raise UsageError(reason) from error


def _describe_refusal(error: Exception, repo: str, revision: str | None) -> str | None:
    """Return the line for an error of huggingface_hub or of the network; None for any other error."""
    from huggingface_hub import constants, errors

    where = f"{repo} on the Hugging Face Hub"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        return _describe_refusal(error.__cause__, repo, revision)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        offline = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached: check the network"
        )
        return f"cannot get {where}: it is not in the local cache, and {offline}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is not the name of a repository: {describe_error(error)}"
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"{where} is gated (HTTP {status}): accept its terms at https://huggingface.co/{repo} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"cannot get {where} (HTTP {status}): check the name; if it is private, set HF_TOKEN"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{where} lacks a file: {describe_error(error)}"
    if isinstance(error, errors.HfHubHTTPError):
        mends = {401: "set HF_TOKEN", 403: "your token may not read it", 429: "the Hub asks for patience"}
        return f"cannot get {where} (HTTP {status}): {mends.get(status or 0, 'the Hub failed, try again later')}"
    if is_transport(error):
        return f"cannot get {where}: the connection failed ({describe_error(error)})"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"cannot keep {where} in the local cache: {error.strerror}; set HF_HOME to another folder"
    return None
