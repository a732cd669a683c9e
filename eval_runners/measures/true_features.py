"""Latents of an SAE against the true features of a synthetic model.

A feature's latent, and a latent's feature, is the one whose direction has the largest absolute cosine with its own.

Latents exist for a few contexts at a time, so that a million of them can be scored. The numbers are those of SAELens'
`eval_sae_on_synthetic_data`.

Shapes: C contexts, T tokens in a context, N tokens, D = d_in, F features, S latents, E pairs of a token and a latent
that fires on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.measures.autocorrelation import LaggedCorrelation
from eval_runners.measures.nearest import Nearest, mean_correlation_coefficient, nearest

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.synthetic.model import SyntheticData

DECILES = 10
LATENTS_AT_ONCE = 2**26
"""Activations of latents that exist at a time."""


@dataclass
class FeatureCounts:
    """Firing of features and of latents on the same tokens."""

    nearest: Nearest
    tokens: int
    """All tokens N."""
    both_S: Tensor
    """Tokens on which a latent and its feature fire."""
    both_F: Tensor
    """Tokens on which a feature and its latent fire."""
    latent_S: Tensor
    """Tokens on which a latent fires."""
    feature_F: Tensor
    """Tokens on which a feature fires."""
    strength_F: Tensor
    """Sum of a feature's strengths."""
    pairs_SS: Tensor | None = None
    """Tokens on which two latents fire, where they are asked for."""
    persistence: LaggedCorrelation | None = None
    """Autocorrelation of latents at lag 1, on a model whose features have half-lives."""

    @property
    def rate_S(self) -> Tensor:
        """Share of the tokens on which a latent fires."""
        return self.latent_S / self.tokens

    @property
    def mean_strength_F(self) -> Tensor:
        """Mean strength of a feature where it fires."""
        return self.strength_F / self.feature_F.clamp(min=1)

    @property
    def recall_F(self) -> Tensor:
        """Share of a feature's firings on which its latent fires; NaN for a feature that never fires."""
        return self.both_F / self.feature_F

    @property
    def f1_F(self) -> Tensor:
        """F1 of a feature's latent as its detector: 2 both / (latent + feature)."""
        return 2 * self.both_F / (self.latent_S[self.nearest.latent_F] + self.feature_F).clamp(min=1)

    def detection(self) -> dict[str, float]:
        """Means over latents of precision, recall and F1 as detectors of their features; 0 where not defined."""
        feature_S = self.feature_F[self.nearest.feature_S]
        precision_S = self.both_S / self.latent_S.clamp(min=1)
        recall_S = self.both_S / feature_S.clamp(min=1)
        f1_S = 2 * self.both_S / (self.latent_S + feature_S).clamp(min=1)
        return {
            "precision": float(precision_S.mean()),
            "recall": float(recall_S.mean()),
            "f1": float(f1_S.mean()),
        }


@dataclass(frozen=True)
class Sample:
    """Which tokens of a synthetic model are compared."""

    n_contexts: int
    """Contexts."""
    context_size: int
    """Tokens T in a context."""
    seed: int
    """Seed."""


def _parts(data: SyntheticData, sample: Sample, S: int) -> Iterator[Tensor]:
    """Yield the features [C, T, F] of so few contexts that their latents may exist at once."""
    from tqdm import tqdm

    contexts = max(1, LATENTS_AT_ONCE // (sample.context_size * S))
    batches = data.features(sample.n_contexts, sample.context_size, "evaluation", sample.seed)
    with tqdm(total=sample.n_contexts, desc="features", unit="context", leave=False) as bar:
        for acts_CTF in batches:
            for part_CTF in acts_CTF.split(contexts):
                yield part_CTF
                bar.update(len(part_CTF))


@torch.no_grad()
def count_firing(
    encode: Callable[[Tensor], Tensor],
    rows_SD: Tensor,
    data: SyntheticData,
    sample: Sample,
    with_pairs: bool = False,
    then: Callable[[Tensor, Tensor], None] | None = None,
) -> FeatureCounts:
    """Count on which tokens features and latents fire.

    Args:
        encode: From activations [C, T, D] to latents [C, T, S].
        rows_SD: Their decoder rows.
        data: The synthetic model.
        sample: The tokens.
        with_pairs: Whether pairs of latents are counted, too.
        then: Is called with the activations and the latents.
    """
    S, F = len(rows_SD), len(data.directions_FD)
    match = nearest(rows_SD, data.directions_FD)
    zeros_S, zeros_F = (torch.zeros(size, device=rows_SD.device) for size in (S, F))
    counts = FeatureCounts(match, 0, zeros_S, zeros_F, zeros_S.clone(), zeros_F.clone(), zeros_F.clone())
    if with_pairs:
        counts.pairs_SS = torch.zeros(S, S, device=rows_SD.device)
    if data.half_lives_F is not None:
        counts.persistence = LaggedCorrelation((1,))
    for acts_CTF in _parts(data, sample, S):
        x_CTD = data.embed(acts_CTF)
        latents_CTS = encode(x_CTD)
        if then:
            then(x_CTD, latents_CTS)
        _add(counts, acts_CTF, latents_CTS)
    return counts


def _add(counts: FeatureCounts, acts_CTF: Tensor, latents_CTS: Tensor) -> None:
    """Count firing on some contexts."""
    fires_NS, features_NF = (latents_CTS != 0).flatten(0, 1), (acts_CTF > 0).flatten(0, 1)
    token_E, latent_E = fires_NS.nonzero(as_tuple=True)
    both_E = features_NF[token_E, counts.nearest.feature_S[latent_E]].float()
    counts.tokens += len(fires_NS)
    counts.latent_S += torch.bincount(latent_E, minlength=len(counts.latent_S))
    counts.both_S.index_add_(0, latent_E, both_E)
    counts.both_F += (fires_NS[:, counts.nearest.latent_F] & features_NF).sum(0)
    counts.feature_F += features_NF.sum(0)
    counts.strength_F += acts_CTF.flatten(0, 1).sum(0)
    if counts.pairs_SS is not None:
        counts.pairs_SS += fires_NS.float().T @ fires_NS.float()
    if counts.persistence is not None:
        counts.persistence.add(latents_CTS, torch.zeros(latents_CTS.shape[:2], dtype=torch.int))


def measure_recovery(
    sae: SAE[Any], data: SyntheticData, sample: Sample, with_pairs: bool
) -> tuple[dict[str, float], FeatureCounts]:
    """Measure how well an SAE recovers features, and what it reconstructs.

    Args:
        sae: In inference form.
        data: The synthetic model.
        sample: The tokens.
        with_pairs: Whether pairs of latents are counted, too.

    Returns:
        The numbers of SAELens' evaluation, and firing of features and latents.
    """
    from sae_lens.evals import ExplainedVarianceCalculator
    from sae_lens.synthetic.evals import ShrinkageCalculator

    variance, shrinkage = ExplainedVarianceCalculator(), ShrinkageCalculator()

    def reconstruct(x_CTD: Tensor, latents_CTS: Tensor) -> None:
        both = sae.decode(latents_CTS).flatten(0, 1), x_CTD.flatten(0, 1)
        variance.add_batch(*both)
        shrinkage.add_batch(*both)

    counts = count_firing(sae.encode, sae.W_dec, data, sample, with_pairs, reconstruct)
    values = {
        "mcc": mean_correlation_coefficient(sae.W_dec, data.directions_FD),
        **counts.detection(),
        "uniqueness": len(counts.nearest.feature_S.unique()) / len(counts.latent_S),
        "explained_variance": variance.compute(),
        "shrinkage": shrinkage.compute(),
        "dead": float((counts.latent_S == 0).float().mean()),
        "l0": float(counts.latent_S.sum()) / counts.tokens,
        "true_l0": float(counts.feature_F.sum()) / counts.tokens,
    }
    return values, counts


def mean_by_decile(values_F: Tensor, key_F: Tensor) -> list[float]:
    """Return the means of values over the tenths of the features, by rising key; NaN values are left out."""
    order_F = key_F.argsort()
    return [float(values_F[part].nanmean()) for part in order_F.tensor_split(DECILES)]
