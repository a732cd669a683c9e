"""Samples of a synthetic model as contexts of tokens, on which SAEs train and are scored as on a language model's.

A token's activation is a sparse sum of feature directions. SAELens' generator draws the features of a token. With
`half_lives`, the features of a context's tokens are Markov chains instead: from one token to the next a feature keeps
its state with probability 2^(-1/half-life), and else draws it again at its firing rate. The rate is unchanged, and
half-lives are drawn independently of it. So a feature's persistence and its rate are independent by construction.

Every sample is a function of the config and a seed. Models are built once, below the environment variable
SAE_VARIANTS_SYNTHETIC, else ~/.cache/sae_variants/synthetic.

Shapes: C contexts, T tokens in a context, D = d_in, F features.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.files import claimed, new_folder
from sae_variants.common.hashing import hash_seed, hash_value
from sae_variants.common.hub_errors import hub_errors
from sae_variants.common.memory import free_memory
from sae_variants.synthetic.config import HALF_LIVES, PRETRAINED, read_synthetic, synthetic_id

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel

ROOT = "SAE_VARIANTS_SYNTHETIC"
ROWS_AT_ONCE = 8192
"""Tokens that are sampled at once."""
TRAINING_ROWS_AT_ONCE = 1024
"""The same for trainings, unless features are chains: a CPU samples faster what fits into its cache."""
KEPT_BYTES = 2**30
"""Largest sample that is kept, for the next SAE on the same one."""
LARGE = 4096
"""Features from which building a model takes so long that it is announced."""
MEMORY_SHARE = 0.5
"""Share of the free memory that a model and one batch of its samples may take."""


class SyntheticData:
    """A synthetic model, and what is sampled from it."""

    def __init__(self, model: SyntheticModel, synthetic: Mapping[str, Any], origin: str) -> None:
        """Keep a model.

        Args:
            model: SAELens' synthetic model.
            synthetic: The table of the target.
            origin: `built from its config`, or where the model was downloaded from.
        """
        self.model, self.origin = model, origin
        self._last: tuple[Any, list[Tensor]] | None = None
        self.half_lives_F: Tensor | None = None
        if half_lives := synthetic.get(HALF_LIVES):
            generator = torch.Generator().manual_seed(_seed(synthetic_id(synthetic), "half-lives"))
            shares_F = torch.rand(model.cfg.num_features, generator=generator)
            shortest, longest = (math.log(number) for number in half_lives)
            self.half_lives_F = torch.exp(shortest + shares_F * (longest - shortest)).to(model.device)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.model.cfg.hidden_dim

    @property
    def device(self) -> str:
        """Device of the samples."""
        return self.model.device

    @cached_property
    def directions_FD(self) -> Tensor:
        """Directions of the features, of unit norm."""
        return self.model.feature_dict.feature_vectors.detach()

    @torch.no_grad()
    def features(self, n_contexts: int, context_size: int, *seed: Any) -> Iterator[Tensor]:
        """Sample the activations of the features, some contexts at a time; the last small sample is kept.

        Args:
            n_contexts: Number of contexts.
            context_size: Tokens T in a context.
            seed: Equal values give equal samples.

        Yields:
            [C, T, F], to be read only; 0 where a feature does not fire.
        """
        from sae_lens.util import temporary_seed

        sample = n_contexts, context_size, *seed
        if self._last and self._last[0] == sample:
            yield from self._last[1]
            return
        step = max(1, ROWS_AT_ONCE // context_size)
        keep = 4 * n_contexts * context_size * self.model.cfg.num_features <= KEPT_BYTES
        parts = []
        for first in range(0, n_contexts, step):
            count = min(step, n_contexts - first)
            with temporary_seed(_seed(*seed, first)):
                acts_CTF = self._sample(count, context_size)
            if keep:
                parts.append(acts_CTF)
                self._last = (sample, parts) if first + count == n_contexts else None
            yield acts_CTF

    @torch.no_grad()
    def activations(self, n_contexts: int, context_size: int, *seed: Any) -> Tensor:
        """Sample activations [C, T, D]; see `features`."""
        return torch.cat([self.embed(acts_CTF) for acts_CTF in self.features(n_contexts, context_size, *seed)])

    @torch.no_grad()
    def embed(self, acts_CTF: Tensor) -> Tensor:
        """Return the activations [C, T, D] of features that fire with these strengths."""
        return self.model.feature_dict(acts_CTF.flatten(0, 1)).view(*acts_CTF.shape[:2], -1)

    def contexts(self, context_size: int) -> Iterator[Tensor]:
        """Yield contexts [T] without end; each holds its number, which `training_activations` reads."""
        for number in itertools.count():
            yield torch.full((context_size,), number)

    @torch.no_grad()
    def training_activations(self, numbers_CT: Tensor, seed: int) -> Tensor:
        """Return the activations [C, T, D] of contexts that `contexts` numbered, for a training of that seed."""
        from sae_lens.util import temporary_seed

        rows = TRAINING_ROWS_AT_ONCE if self.half_lives_F is None else ROWS_AT_ONCE
        parts = numbers_CT.split(max(1, round(rows / numbers_CT.shape[1])))
        with temporary_seed(_seed("training", seed, int(numbers_CT[0, 0]))):
            return torch.cat([self.embed(self._sample(*part_CT.shape)) for part_CT in parts])

    def _sample(self, n_contexts: int, context_size: int) -> Tensor:
        """Sample features [C, T, F] by the global random state."""
        if self.half_lives_F is not None:
            return self._chains(n_contexts, context_size, self.half_lives_F)
        acts_NF = self.model.activation_generator.sample(n_contexts * context_size)
        return acts_NF.view(n_contexts, context_size, -1)

    def _chains(self, n_contexts: int, context_size: int, half_lives_F: Tensor) -> Tensor:
        """Sample features [C, T, F] that keep their state from token to token with their half-lives."""
        generator = self.model.activation_generator
        rates_F, keep_F = generator.firing_probabilities, 2.0 ** (-1.0 / half_lives_F)
        shape = (n_contexts, len(rates_F))
        states = [torch.rand(shape, device=self.device) < rates_F]
        for _ in range(context_size - 1):
            fresh = torch.rand(shape, device=self.device) < rates_F
            states.append(torch.where(torch.rand(shape, device=self.device) < keep_F, states[-1], fresh))
        fires = torch.stack(states, dim=1)
        feature = fires.nonzero(as_tuple=True)[2]
        noise = torch.randn(len(feature), device=self.device) * generator.std_firing_magnitudes[feature]
        acts_CTF = torch.zeros(fires.shape, device=self.device)
        acts_CTF[fires] = (generator.mean_firing_magnitudes[feature] + noise).relu()
        return acts_CTF


def load_synthetic(synthetic: Mapping[str, Any], device: str, where: str = "[synthetic]") -> SyntheticData:
    """Load a synthetic model, after building or downloading it if necessary.

    A model with `pretrained` is downloaded; where the Hub is out of reach it is built from its config. `origin` says
    which.

    Args:
        synthetic: The table of the target.
        device: Device of the samples.
        where: Names the table in errors.

    Raises:
        UsageError: A field cannot be used, or the model does not fit into memory.
    """
    from sae_lens.synthetic import SyntheticModel

    name, config = synthetic.get(PRETRAINED), read_synthetic(synthetic, where)
    _check_memory(config.num_features, config.hidden_dim, device)
    if name:
        try:
            with hub_errors(f"cannot get the synthetic model {name} on the Hugging Face Hub"):
                model = SyntheticModel.from_pretrained(name, device=device)
            return SyntheticData(model, synthetic, f"the Hub: {name}")
        except UsageError as error:
            reason = f"; {error}"
    else:
        reason = ""
    folder = _root() / hash_value(config.to_dict(), size=8)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claimed(folder):
            if not folder.is_dir():
                if config.num_features >= LARGE:
                    size = f"{config.num_features:,} features in {config.hidden_dim} dimensions"
                    print(f"building a synthetic model of {size}, once: this takes many minutes", file=sys.stderr)
                with new_folder(folder, ROOT) as partial, contextlib.redirect_stderr(io.StringIO()):
                    SyntheticModel(config, device=device).save(partial)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the synthetic model cannot be built: {describe_error(error)}") from error
    return SyntheticData(_load(folder, device), synthetic, f"built from its config{reason}")


def _load(folder: Path, device: str) -> SyntheticModel:
    from sae_lens.synthetic import SyntheticModel

    return SyntheticModel.load_from_disk(folder, device=device)


def _root() -> Path:
    return Path(os.environ.get(ROOT) or Path.home() / ".cache" / "sae_variants" / "synthetic")


def _check_memory(num_features: int, hidden_dim: int, device: str) -> None:
    # the directions with gradient and Adam's moments; the draws of a batch of tokens, three of them at a time
    needed = 4 * num_features * (4 * hidden_dim + 3 * ROWS_AT_ONCE)
    room = MEMORY_SHARE * free_memory(device)
    if needed > room:
        raise UsageError(
            f"num_features = {num_features} of {hidden_dim} dimensions need {needed / 2**30:.1f} GiB, and "
            f"{room / 2**30:.1f} GiB may be used on {device}: lower num_features"
        )


def _seed(*parts: Any) -> int:
    return hash_seed([str(part) for part in parts])
