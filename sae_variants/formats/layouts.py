"""Layouts of saved SAEs: which files each has, and how a folder is read.

SAELens               cfg.json, sae_weights.safetensors
sparsify              cfg.json, sae.safetensors
dictionary_learning   config.json, ae.pt
Gemma Scope           params.npz
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_files
from sae_variants.common.json_files import refuse_pointer
from sae_variants.formats import dictionary_learning, gemma_scope, sparsify
from sae_variants.registry.build import load as load_saelens
from sae_variants.registry.saved_config import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Layout:
    """How a library saves an SAE."""

    name: str
    """The library."""
    files: tuple[str, ...]
    """Names of its files: the weights last."""
    read: Callable[..., Any] | None = None
    """Reads a folder as SAELens' disk loaders do; None for SAELens' layout."""

    def hash_folder(self, folder: Path) -> str:
        """Return the hash of the layout's files in a folder, the weights first."""
        return hash_files([folder / name for name in reversed(self.files)])


SAELENS = Layout("SAELens", (CONFIG, WEIGHTS))
LAYOUTS = (
    SAELENS,
    Layout("sparsify", (sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read_folder),
    Layout(
        "dictionary_learning",
        (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        dictionary_learning.read_folder,
    ),
    Layout("Gemma Scope", (gemma_scope.WEIGHTS,), gemma_scope.read_folder),
)


def find_layout(names: Collection[str]) -> Layout | None:
    """Return the first layout all of whose files are among the names."""
    return next((layout for layout in LAYOUTS if set(layout.files) <= set(names)), None)


def layout_of(folder: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        UsageError: The folder has not all files of any layout, or one of them is a Git LFS pointer; the message names
            the file.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if layout := find_layout(names):
        for name in layout.files:
            refuse_pointer(folder / name)
        return layout
    raise UsageError(f"{folder} is not a saved SAE: {describe_missing(names)}")


def describe_missing(names: Collection[str]) -> str:
    """Return what is missing for the layout to which most of the names belong."""
    begun = max(LAYOUTS, key=lambda layout: len(set(layout.files) & set(names)))
    missing = [name for name in begun.files if name not in names]
    if begun is SAELENS:
        others = "; ".join(f"{' and '.join(layout.files)} of {layout.name}" for layout in LAYOUTS[1:])
        return f"it has no {missing[0]}, and not the files of another layout ({others})"
    return f"it has no {missing[0]}, which belongs to the layout of {begun.name}"


def load(path: str | Path, device: str = "cpu") -> SAE[Any]:
    """Load a saved SAE in inference form, from a folder in any of the layouts.

    Args:
        path: The folder.
        device: Device of the weights.

    Raises:
        UsageError: The folder does not exist, is in no layout that is known, or cannot be read.
    """
    folder = Path(path)
    return load_saelens(folder, device, layout_of(folder).read if folder.is_dir() else None)
