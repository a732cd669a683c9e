"""An SAE that lies on disk: what tables call it, where its weights are, and how it was trained."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_files
from sae_variants.registry.build import load
from sae_variants.registry.saved_config import why_no_autoencoder
from sae_variants.training.grid import GridPoint
from sae_variants.training.plan import Plan

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class LocatedSAE:
    """An SAE that lies on disk. Its weights are read when they are needed."""

    label: str
    """Its name in tables, such as `temporal[k=16]`."""
    folder: Path
    """Holds `cfg.json` and `sae_weights.safetensors`."""
    seed: int | None = None
    training_tokens: int | None = None
    """None where the SAE does not say."""
    kind: str | None = None
    """Hash of its training record without the seed. None for an SAE that was not trained here."""
    learns: bool = True
    """False for `random`, which may be untrained."""
    grid_point: GridPoint = field(default_factory=dict)
    """Values of the fields that the command's grid varies."""
    plan: Plan | None = None
    """How it was trained, where a variant's name was given."""

    @cached_property
    def weight_hash(self) -> str:
        """Hash of weights and config: a result belongs to these and no others."""
        return hash_files([self.folder / "sae_weights.safetensors", self.folder / "cfg.json"])

    @property
    def title(self) -> str:
        """The label, with the seed where there is one."""
        return self.label if self.seed is None else f"{self.label} (seed {self.seed})"

    def load(self, device: str) -> SAE[Any]:
        """Load it in inference form, with decoder rows of unit norm, as SAEBench has them for SAEs that it loads.

        Raises:
            UsageError: the folder holds no SAE that can be loaded, or what it holds is no autoencoder.
        """
        sae = load(self.folder, device)
        if reason := why_no_autoencoder(sae):
            raise UsageError(f"{self.label} {reason}")
        with contextlib.suppress(NotImplementedError):
            sae.fold_W_dec_norm()
        return sae
