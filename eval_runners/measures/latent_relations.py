"""Latents that are related to a latent: by decoder direction, by activation, and by the tokens on which they fire.

Shapes: D = d_in, S = d_sae, N tokens, E firings (a latent on a token).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval_runners.measures.firing import Firing

SHOWN_RELATED = 5
"""Latents that are listed of each relation."""

RelatedLatents = list[tuple[int, float, str]]
"""Number, value of the relation, and label of each latent; largest value first."""


class LatentRelations:
    """The latents of an SAE on held-out text, ready to list those that are related to one of them."""

    def __init__(self, W_dec_SD: Tensor, firing: Firing, label_of: Callable[[int], str]) -> None:
        """Sum what all relations share.

        Args:
            W_dec_SD: decoder.
            firing: firings of the SAE.
            label_of: gives the label of a latent.
        """
        self.firing, self.label_of = firing, label_of
        self.unit_SD = normalize(W_dec_SD.detach().float(), dim=1)
        self.counts_S = firing.counts_S()
        self.latent_E = torch.repeat_interleave(self.counts_S)
        self.acts_E = firing.acts_E.double()
        self.sum_S = self._sum_by_latent(self.acts_E)
        self.square_S = self._sum_by_latent(self.acts_E**2)

    def describe(self, latent: int) -> dict[str, RelatedLatents]:
        """List related latents.

        Returns:
            `nearest`: by the cosine of decoder rows. `correlated`: by the Pearson correlation of activations over all
            tokens. `together`: by the tokens on which both fire, as a share of those on which either does. The latter
            two hold positive values only, and are empty for a latent that does not fire.
        """
        cosine_S = self.unit_SD @ self.unit_SD[latent]
        found = {"nearest": self._largest(cosine_S, latent, -2.0), "correlated": [], "together": []}
        tokens_E, acts_E = self.firing.firings_of(latent)
        if not len(tokens_E):
            return found
        acts_N = torch.zeros(self.firing.ids_CT.numel(), dtype=torch.float64)
        acts_N[tokens_E] = acts_E.double()
        own_E = acts_N[self.firing.tokens_E]
        found["correlated"] = self._largest(self._correlation_S(latent, own_E), latent)
        both_S = self._sum_by_latent((own_E > 0).double())
        found["together"] = self._largest(both_S / (self.counts_S + len(tokens_E) - both_S), latent)
        return found

    def nearest_to(self, row_D: Tensor) -> tuple[int, float, str]:
        """Number, cosine and label of the latent whose decoder row is nearest to a row of another SAE."""
        cosine_S = self.unit_SD @ normalize(row_D.detach().to(self.unit_SD), dim=0)
        nearest = int(cosine_S.argmax())
        return nearest, float(cosine_S[nearest]), self.label_of(nearest)

    def _correlation_S(self, latent: int, own_E: Tensor) -> Tensor:
        """Pearson correlation [S] with a latent, whose activations on the token of each firing are `own_E`."""
        n, product_S = self.firing.n_tokens, self._sum_by_latent(self.acts_E * own_E)
        covariance_S = product_S / n - self.sum_S * self.sum_S[latent] / n**2
        deviation_S = (self.square_S / n - (self.sum_S / n) ** 2).clamp(min=0).sqrt()
        return covariance_S / (deviation_S * deviation_S[latent]).clamp(min=1e-12)

    def _sum_by_latent(self, values_E: Tensor) -> Tensor:
        return torch.zeros(len(self.counts_S), dtype=torch.float64).index_add_(0, self.latent_E, values_E)

    def _largest(self, values_S: Tensor, latent: int, above: float = 0.0) -> RelatedLatents:
        values_S = values_S.clone()
        values_S[latent] = -torch.inf
        largest = values_S.topk(min(SHOWN_RELATED, len(values_S) - 1))
        return [
            (int(other), float(value), self.label_of(int(other)))
            for other, value in zip(largest.indices, largest.values, strict=True)
            if value > above
        ]
