"""The linear direction along which documents differ most, relative to their own spread.

Shapes: C contexts, T positions in a context, D = d_in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from eval_runners.measures.autocorrelation import number_documents, zero_sum

RIDGE = 1e-3
"""Share of the mean within-document variance added to that of every channel, so that the problem has a solution."""


@dataclass
class DocumentDirection:
    """Sums from which Fisher's linear discriminant follows, with documents as classes."""

    tokens: int = 0
    sum_D: Tensor = field(default_factory=zero_sum)
    total_DD: Tensor = field(default_factory=zero_sum)
    """Sum of x xᵀ over tokens."""
    between_DD: Tensor = field(default_factory=zero_sum)
    """Sum of n m mᵀ over documents, of n tokens and mean m."""

    def add(self, x_CTD: Tensor, special_CT: Tensor) -> None:
        """Add a batch of contexts. A document of a single token has no spread and is left out."""
        for x_TD, document_T in zip(x_CTD.double(), number_documents(special_CT), strict=True):
            for number in document_T.unique().tolist():
                rows = x_TD[document_T == number]
                if number >= 0 and len(rows) > 1:
                    sum_D = rows.sum(0)
                    self.tokens += len(rows)
                    self.sum_D = self.sum_D + sum_D
                    self.total_DD = self.total_DD + rows.T @ rows
                    self.between_DD = self.between_DD + torch.outer(sum_D, sum_D) / len(rows)

    def direction_D1(self) -> Tensor:
        """Solve for the direction [D, 1] of the largest variance between documents relative to that within them."""
        from scipy.linalg import eigh

        mean_DD = torch.outer(self.sum_D, self.sum_D) / self.tokens
        between_DD, within_DD = self.between_DD - mean_DD, self.total_DD - self.between_DD
        ridge_DD = RIDGE * within_DD.diagonal().mean() * torch.eye(len(within_DD)).to(within_DD)
        _, vectors_DD = eigh(between_DD.cpu().numpy(), (within_DD + ridge_DD).cpu().numpy())
        return torch.from_numpy(vectors_DD[:, -1:].copy())
