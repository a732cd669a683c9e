"""From where a user says that an SAE is to a folder in SAELens' layout.

A source is a folder in any layout, `user/repo@revision:path` on the Hub, or `RELEASE:SAE_ID` of SAELens' registry. What
is in another layout is converted once, into

    <root>/<hash of the source>/    cfg.json, sae_weights.safetensors

The root is the environment variable SAE_VARIANTS_CONVERTED, else ~/.cache/sae_variants/converted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_folder_writable, claimed, new_folder
from sae_variants.common.hashing import hash_value
from sae_variants.formats.hub import HubId, download_sae, parse_hub_id, repository_errors
from sae_variants.formats.layouts import SAELENS, Layout, layout_of, load
from sae_variants.formats.releases import check_release, load_release, releases, split_release
from sae_variants.formats.sparsify import model_beside
from sae_variants.registry.build import load as load_saelens
from sae_variants.registry.saved_config import CONFIG, SCALED, WEIGHTS, why_no_autoencoder

if TYPE_CHECKING:
    from sae_lens import SAE

ROOT = "SAE_VARIANTS_CONVERTED"
READERS = 2
"""Raised whenever a reader makes something else of the same files, so that no earlier conversion is used."""


@dataclass(frozen=True)
class Source:
    """An SAE that somebody saved, in a folder in SAELens' layout."""

    folder: Path
    """Holds `cfg.json` and `sae_weights.safetensors`."""
    digest: str
    """Hash of the weights and of everything else in the source that decides what the SAE computes."""


def is_folder(name: str) -> bool:
    """Return whether a name is that of an existing folder."""
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # a name too long for the file system
        return False


def open_source(name: str, beside: Collection[str] = ()) -> Source:
    """Locate an SAE, after downloading and converting it if necessary.

    Args:
        name: A folder, `user/repo@revision:path` or `RELEASE:SAE_ID`.
        beside: Names of further files of SAELens' layout that are downloaded from the Hub if they are there.

    Raises:
        UsageError: The name has another form, there is no SAE, or it cannot be read.
    """
    if is_folder(name):
        folder = Path(name)
        return _as_saelens(folder, layout_of(folder))
    if hub_id := parse_hub_id(name):
        if registered := _registered(hub_id):
            return _open_release(*registered)
        folder, layout = download_sae(hub_id, beside)
        return _as_saelens(folder, layout)
    if "/" not in name.partition(":")[0] and (release := split_release(name)):
        return _open_release(*release)
    raise UsageError(f"no folder {name!r}; an SAE on the Hub is written user/repo:path, a released one RELEASE:SAE_ID")


def load_unfolded(name: str, norm_scaling_factor: float | None = None) -> SAE[Any]:
    """Load an SAE from its source and fold in the factor of its inputs, where its config has such a normalisation.

    Args:
        name: The source; see `open_source`.
        norm_scaling_factor: Factor that inputs were multiplied with in training.

    Raises:
        UsageError: As `open_source`; or the SAE is no autoencoder; or it has no such normalisation.
    """
    folder = Path(name) if is_folder(name) else open_source(name).folder
    if norm_scaling_factor is None:
        sae = load(folder)
    else:
        sae = load_saelens(folder, ignored=(SCALED,))
        if sae.cfg.normalize_activations != SCALED:
            raise UsageError(f"{name} has no normalize_activations {SCALED}: leave out --norm-scaling-factor")
        sae.fold_activation_norm_scaling_factor(norm_scaling_factor)
    if reason := why_no_autoencoder(sae):
        raise UsageError(f"{name} {reason}")
    return sae


def _registered(hub_id: HubId) -> tuple[str, str] | None:
    """Return release and id of an SAE on the Hub that SAELens' registry knows and reads by a loader of its own.

    SAELens' layout needs no such loader, and no loader of SAELens' takes a revision.
    """
    if hub_id.revision:
        return None
    for release, lookup in releases().items():
        if lookup.repo_id == hub_id.repo and lookup.conversion_func:
            for sae_id, path in lookup.saes_map.items():
                if path.strip("/") == hub_id.path:
                    return release, sae_id
    return None


def _open_release(release: str, sae_id: str) -> Source:
    from huggingface_hub import constants

    check_release(release, sae_id)
    lookup = releases()[release]
    revision = _revision(lookup.repo_id)
    key = [release, sae_id, lookup.repo_id, revision, constants.ENDPOINT, version("sae-lens")]
    return _converted(key, lambda: load_release(release, sae_id))


def _revision(repo: str) -> str:
    """Return the newest commit of a repository; without the Hub, the commit in the local cache.

    Raises:
        UsageError: The Hub refuses, or cannot be reached and nothing is in the cache.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        with repository_errors(repo):
            return str(HfApi().model_info(repo).sha)
    except UsageError:
        ref = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "refs" / "main"
        if not ref.is_file():
            raise
        return ref.read_text().strip()


def _as_saelens(folder: Path, layout: Layout) -> Source:
    digest = layout.hash_folder(folder)
    if layout is SAELENS:
        return Source(folder, digest)
    # What a reader takes from beside the files: the hook from the folder's name, and sparsify's model.
    key = [READERS, layout.name, digest, folder.resolve().name, model_beside(folder)]
    return Source(_converted(key, lambda: load(folder)).folder, digest)


def _converted(key: list[Any], make: Callable[[], SAE[Any]]) -> Source:
    root = Path(os.environ.get(ROOT) or Path.home() / ".cache" / "sae_variants" / "converted")
    folder = root / hash_value(key, size=10)

    def is_there() -> bool:
        return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()

    if not is_there():
        check_folder_writable(root, ROOT)
        with claimed(folder):
            if not is_there():  # another process may have converted it meanwhile
                sae = make()
                with new_folder(folder, ROOT) as partial:
                    save(sae, partial)
    return Source(folder, SAELENS.hash_folder(folder))


def save(sae: SAE[Any], folder: Path) -> None:
    """Save an SAE in SAELens' layout, with what SAELens' own evaluations ask for."""
    sae.cfg.device = "cpu"
    if sae.cfg.metadata.model_from_pretrained_kwargs is None:
        sae.cfg.metadata.model_from_pretrained_kwargs = {}  # SAEBench passes it on as **kwargs
    sae.save_model(folder)
