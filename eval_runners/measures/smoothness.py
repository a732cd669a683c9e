"""Smoothness of activations along a context, as T-SAE measures it.

Smoothness is the largest |a_t - a_{t-1}| / ‖x_t - x_{t-1}‖₂ of a sequence, where a is a latent and x the activation
that the SAE reads. A constant latent has 0.

Shapes: C contexts, T positions in a context, D = d_in, S latents or channels.

Source: arXiv 2511.05541.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from eval_runners.measures.autocorrelation import EPSILON, zero_sum


@dataclass
class Smoothness:
    """Sums of the steepest relative step of each latent and sequence."""

    peak_S: Tensor = field(default_factory=zero_sum)
    """Sum of the steepest steps over the sequences in which the latent fires."""
    sequences_S: Tensor = field(default_factory=zero_sum)
    """Sequences in which the latent fires."""
    all_peaks_S: Tensor = field(default_factory=zero_sum)
    """Sum of the steepest steps over all sequences."""
    sequences: int = 0

    def add(self, acts_CTS: Tensor, x_CTD: Tensor, document_CT: Tensor) -> None:
        """Add a batch of contexts.

        Args:
            acts_CTS: latents, 0 at special tokens.
            x_CTD: activations that the SAE reads.
            document_CT: result of `number_documents`.
        """
        is_step_CT = (document_CT[:, 1:] == document_CT[:, :-1]) & (document_CT[:, 1:] >= 0)
        distance_CT = (x_CTD[:, 1:] - x_CTD[:, :-1]).norm(dim=-1).clamp(min=EPSILON)
        slope_CTS = (acts_CTS[:, 1:] - acts_CTS[:, :-1]).abs() / distance_CT[..., None]
        peak_CS = (slope_CTS * is_step_CT[..., None]).amax(1)
        fires_CS = ((acts_CTS > 0) & (document_CT >= 0)[..., None]).any(1)
        self.peak_S = self.peak_S + (peak_CS * fires_CS).sum(0).double()
        self.sequences_S = self.sequences_S + fires_CS.sum(0).double()
        self.all_peaks_S = self.all_peaks_S + peak_CS.sum(0).double()
        self.sequences += len(acts_CTS)

    def __add__(self, other: Smoothness) -> Smoothness:
        """Pool the sequences of both."""
        return Smoothness(
            self.peak_S + other.peak_S,
            self.sequences_S + other.sequences_S,
            self.all_peaks_S + other.all_peaks_S,
            self.sequences + other.sequences,
        )

    def latent_mean(self, keep_S: Tensor, scale_S: Tensor | None = None) -> float:
        """Average over sequences and the latents that fire in them.

        Args:
            keep_S: mask of the latents to average over.
            scale_S: number that each latent is divided by; None leaves latents as they are.
        """
        peak_S = self.peak_S if scale_S is None else self.peak_S / scale_S.clamp(min=EPSILON)
        return (peak_S[keep_S].sum() / self.sequences_S[keep_S].sum()).item()

    def channel_mean(self, scale_S: Tensor) -> float:
        """Average over all sequences and all channels, each divided by its scale."""
        return (self.all_peaks_S / scale_S.clamp(min=EPSILON)).mean().item() / max(self.sequences, 1)
