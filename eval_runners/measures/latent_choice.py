"""The option `--latents`: `best:12`, `random:20`, or latent numbers like `3,17,40`.

Shapes: S = d_sae, E firings.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from eval_runners.measures.firing import Firing

MIN_CONTEXTS = 10
"""Contexts in which a latent must fire to be chosen by `best` or `random`."""


@dataclass(frozen=True)
class LatentChoice:
    """Latents that a user chooses, before it is known where they fire."""

    text: str
    """The choice as it is typed."""
    how: Literal["best", "random", "numbers"]
    """By importance, at random, or by number."""
    numbers: tuple[int, ...]
    """Latent numbers, or how many latents `best` and `random` choose."""

    @classmethod
    def parse(cls, text: str) -> LatentChoice:
        """Read `best:N`, `random:N` or numbers.

        Raises:
            ArgumentTypeError: anything else; the message names the forms.
        """
        how, colon, count = text.partition(":")
        numbers = [count] if colon else text.split(",")
        if (colon and how not in ("best", "random")) or not all(part.strip().isdecimal() for part in numbers):
            raise ArgumentTypeError(f"give best:12, random:20, or numbers like 3,17,40, not {text!r}")
        values = tuple(dict.fromkeys(int(part) for part in numbers))
        if colon and values[0] < 1:
            raise ArgumentTypeError(f"{text}: there must be at least one")
        return cls(text, ("best" if how == "best" else "random") if colon else "numbers", values)

    def check_exist(self, d_sae: int) -> None:
        """Refuse numbers of latents that the SAE does not have.

        Raises:
            UsageError: names the largest number.
        """
        if self.how == "numbers" and max(self.numbers) >= d_sae:
            raise UsageError(f"--latents {max(self.numbers)}: the SAE has {d_sae} latents, numbered from 0")

    def choose(self, firing: Firing, seed: int) -> list[int]:
        """The numbers of the chosen latents.

        `best` takes those whose removal raises the squared error most, per token on which they fire. `best` and
        `random` choose from the latents that fire in enough contexts; there may be none.

        Raises:
            UsageError: a number that the SAE does not have.
        """
        import torch

        self.check_exist(len(firing.ends_S))
        if self.how == "numbers":
            return list(self.numbers)
        counts_S, n_contexts = firing.counts_S(), len(firing.ids_CT)
        context_E, latent_E = firing.tokens_E // firing.ids_CT.shape[1], torch.repeat_interleave(counts_S)
        pairs = torch.unique(latent_E * n_contexts + context_E)
        contexts_S = torch.bincount(pairs // n_contexts, minlength=len(counts_S))
        frequent = (contexts_S >= min(MIN_CONTEXTS, n_contexts)).nonzero().squeeze(1)
        if self.how == "best":
            order = (firing.gain_S[frequent] / counts_S[frequent]).argsort(descending=True, stable=True)
            return frequent[order[: self.numbers[0]]].tolist()
        order = torch.randperm(len(frequent), generator=torch.Generator().manual_seed(seed))
        return frequent[order[: self.numbers[0]]].sort().values.tolist()

    def choose_some(self, firing: Firing, seed: int) -> list[int]:
        """The numbers of the chosen latents, at least one.

        Raises:
            UsageError: as for `choose`, or no latent fires often enough.
        """
        if chosen := self.choose(firing, seed):
            return chosen
        raise UsageError(f"--latents {self.text}: no latent of the SAE fires often enough on this text")
