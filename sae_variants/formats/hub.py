"""SAEs on the Hub, `user/repo@revision:path`: only the files of the SAE's layout are downloaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from sae_variants.common.errors import UsageError
from sae_variants.common.hub_errors import hub_errors
from sae_variants.formats.layouts import LAYOUTS, Layout, describe_missing

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
    """Return the parts of `user/repo:path` or `user/repo@revision:path`; None if the name has another form.

    Raises:
        UsageError: The path or the revision leads out of the repository.
    """
    match = HUB_ID.fullmatch(name)
    if not match or name.startswith((".", "/")):
        return None
    path = PurePosixPath(match["path"].strip("/"))
    for part in map(PureWindowsPath, [*path.parts, match["revision"] or ""]):
        if part.anchor or ".." in part.parts:
            raise UsageError(f"{name!r} leads out of the repository; write user/repo:path/of/the/folder")
    return HubId(match["repo"], str(path), match["revision"])


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

    with repository_errors(hub_id.repo, hub_id.revision):
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


def repository_errors(repo: str, revision: str | None = None) -> AbstractContextManager[None]:
    """Return the context that turns errors of the Hub into a UsageError that names a repository of SAEs."""
    where = f"the repository {repo}" + (f" at revision {revision!r}" if revision else "")
    return hub_errors(f"cannot get {where} on the Hugging Face Hub")
