"""Firing rate of latents over positions in a context, and the information between position and firing.

Shapes: C contexts, T positions in a context, S latents, B bins of positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from eval_runners.measures.autocorrelation import EPSILON


@dataclass
class FiringProfile:
    """Counts of the tokens on which each latent fires, by position."""

    bins: int
    """Equally long stretches of positions."""
    fires_TS: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Tokens at a position on which the latent fires."""
    tokens_T: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Tokens at a position, special tokens excluded."""

    def add(self, fires_CTS: Tensor, ordinary_CT: Tensor) -> None:
        """Add a batch of contexts; `ordinary_CT` is the mask of tokens that are not special."""
        self.fires_TS = self.fires_TS + (fires_CTS & ordinary_CT[..., None]).sum(0).float()
        self.tokens_T = self.tokens_T + ordinary_CT.sum(0).float()

    def __add__(self, other: FiringProfile) -> FiringProfile:
        """Pool the contexts of both."""
        return FiringProfile(self.bins, self.fires_TS + other.fires_TS, self.tokens_T + other.tokens_T)

    def binned(self) -> tuple[Tensor, Tensor]:
        """Sum the counts over bins of positions.

        Returns:
            [B, S] tokens on which a latent fires; [B] tokens.
        """
        positions = len(self.tokens_T)
        bin_T = torch.arange(positions, device=self.tokens_T.device) * self.bins // positions
        fires_BS = torch.zeros(self.bins, self.fires_TS.shape[1], dtype=torch.float64, device=self.fires_TS.device)
        tokens_B = torch.zeros(self.bins, dtype=torch.float64, device=self.fires_TS.device)
        fires_BS.index_add_(0, bin_T, self.fires_TS.double())
        tokens_B.index_add_(0, bin_T, self.tokens_T.double())
        return fires_BS, tokens_B

    def rate_BS(self) -> Tensor:
        """Firing rate in each bin relative to the latent's mean rate: 1 everywhere if position does not matter."""
        fires_BS, tokens_B = self.binned()
        mean_S = fires_BS.sum(0) / tokens_B.sum().clamp(min=1)
        return fires_BS / tokens_B.clamp(min=1)[:, None] / mean_S.clamp(min=EPSILON)

    def information_S(self) -> Tensor:
        """Mutual information in bits between firing and bin, as counted: finite counts bias it upwards."""
        fires_BS, tokens_B = self.binned()
        silent_BS = tokens_B[:, None] - fires_BS
        total = tokens_B.sum()
        bits_S = torch.zeros_like(fires_BS[0])
        for joint_BS in (fires_BS, silent_BS):
            expected_BS = tokens_B[:, None] * joint_BS.sum(0) / total
            ratio = (joint_BS / expected_BS.clamp(min=EPSILON)).clamp(min=EPSILON).log2()
            bits_S += (joint_BS / total * ratio).sum(0)
        return bits_S
