"""Latents of an SAE against the true features of a synthetic model.

A feature's latent, and a latent's feature, is the one whose direction has the largest absolute cosine with its own.

Shapes: C contexts, T tokens in a context, N tokens, D = d_in, F features, S latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.measures.autocorrelation import LaggedCorrelation
from sae_variants.common.console import progress

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.synthetic.evals import SyntheticDataEvalResult

    from sae_variants.synthetic.model import SyntheticData

DECILES = 10


class _Sampler:
    """Stand-in for SAELens' generator: its samples are the tokens of contexts, in their order."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def sample(self, batch_size: int) -> Tensor:
        """Return the features [N, F] of the next batch, which is as large as SAELens asks for."""
        acts_NF = next(self.batches).flatten(0, 1)
        assert len(acts_NF) == batch_size
        return acts_NF


def evaluate_on_truth(
    sae: SAE[Any], data: SyntheticData, n_contexts: int, context_size: int, seed: int
) -> SyntheticDataEvalResult:
    """Run SAELens' own evaluation on a sample of a synthetic model.

    Args:
        sae: In inference form.
        data: The synthetic model.
        n_contexts: Contexts of the sample.
        context_size: Tokens T in a context.
        seed: Seed of the sample.
    """
    from sae_lens.synthetic.evals import eval_sae_on_synthetic_data

    batches = data.features(n_contexts, context_size, "evaluation", seed)
    first = next(batches)
    sampler: Any = _Sampler(itertools.chain([first], batches))
    size = first.shape[0] * context_size
    return eval_sae_on_synthetic_data(sae, data.model.feature_dict, sampler, n_contexts * context_size, size)


@torch.no_grad()
def cosines(rows_SD: Tensor, directions_FD: Tensor) -> Tensor:
    """Return absolute cosines [S, F] of decoder rows and feature directions; 0 for a row of zeros."""
    rows_SD = rows_SD / rows_SD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (rows_SD @ (directions_FD / directions_FD.norm(dim=-1, keepdim=True)).T).abs()


@dataclass
class FeatureCounts:
    """Firing of features and of latents on the same tokens."""

    tokens: int
    both_SF: Tensor
    """Tokens on which a latent and a feature fire."""
    latent_S: Tensor
    """Tokens on which a latent fires."""
    feature_F: Tensor
    """Tokens on which a feature fires."""
    strength_F: Tensor
    """Mean strength of a feature where it fires."""
    pairs_SS: Tensor
    """Tokens on which two latents fire."""
    persistence: LaggedCorrelation
    """Autocorrelation of latents at lag 1."""

    @property
    def rate_S(self) -> Tensor:
        """Share of the tokens on which a latent fires."""
        return self.latent_S / self.tokens

    def recall_F(self, latent_F: Tensor) -> Tensor:
        """Share of a feature's firings on which its latent fires; NaN for a feature that never fires."""
        return self.both_SF[latent_F, torch.arange(len(latent_F))] / self.feature_F

    def f1_F(self, latent_F: Tensor) -> Tensor:
        """F1 of a feature's latent as its detector: 2 both / (latent + feature)."""
        both_F = self.both_SF[latent_F, torch.arange(len(latent_F))]
        return 2 * both_F / (self.latent_S[latent_F] + self.feature_F).clamp(min=1)


@torch.no_grad()
def count_firing(
    sae: SAE[Any], data: SyntheticData, n_contexts: int, context_size: int, seed: int, lower: bool = False
) -> FeatureCounts:
    """Count on which tokens features and latents fire.

    Args:
        sae: In inference form.
        data: The synthetic model.
        n_contexts: Contexts of the sample, which is that of `evaluate_on_truth`.
        context_size: Tokens T in a context.
        seed: Seed of the sample.
        lower: Whether the latents are those of the lower level of an SAE with two.
    """
    encode: Any = sae.encode_lower if lower else sae.encode
    counts: FeatureCounts | None = None
    for acts_CTF in progress(data.features(n_contexts, context_size, "evaluation", seed), "features"):
        latents_CTS = encode(data.embed(acts_CTF))
        fires_NS = (latents_CTS != 0).flatten(0, 1).float()
        features_NF = (acts_CTF > 0).flatten(0, 1).float()
        if counts is None:
            S, F = fires_NS.shape[1], features_NF.shape[1]
            both_SF, pairs_SS = (torch.zeros(S, width, device=fires_NS.device) for width in (F, S))
            zeros_S, zeros_F = both_SF[:, 0].clone(), both_SF[0].clone()
            lagged = LaggedCorrelation((1,))
            counts = FeatureCounts(0, both_SF, zeros_S, zeros_F, zeros_F.clone(), pairs_SS, lagged)
        counts.tokens += len(fires_NS)
        counts.both_SF += fires_NS.T @ features_NF
        counts.latent_S += fires_NS.sum(0)
        counts.feature_F += features_NF.sum(0)
        counts.strength_F += acts_CTF.flatten(0, 1).sum(0)
        counts.pairs_SS += fires_NS.T @ fires_NS
        counts.persistence.add(latents_CTS, torch.zeros(latents_CTS.shape[:2], dtype=torch.int))
    assert counts is not None
    counts.strength_F /= counts.feature_F.clamp(min=1)
    return counts


def mean_by_decile(values_F: Tensor, key_F: Tensor) -> list[float]:
    """Return the means of values over the tenths of the features, by rising key; NaN values are left out."""
    order_F = key_F.argsort()
    return [float(values_F[part].nanmean()) for part in order_F.tensor_split(DECILES)]
