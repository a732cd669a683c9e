"""Which latents a user means by `best:12`, `random:20` or `3,17,40`. Shapes: S = d_sae."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from eval_runners.measures.firing import Firing

OFTEN = 10
"""Contexts in which a latent must fire to be chosen by `best` or `random`."""


def parse_latents(text: str, d_sae: int | None = None) -> tuple[str, list[int]]:
    """`best:12` as ("best", [12]), `3,17` as ("", [3, 17]). UsageError for anything else, or a number beyond d_sae."""
    how, colon, number = text.partition(":")
    numbers = [number] if colon else text.split(",")
    if (colon and how not in ("best", "random")) or not all(part.strip().isdecimal() for part in numbers):
        raise UsageError(f"--latents is best:12, random:20, or numbers like 3,17,40, not {text!r}")
    found = list(dict.fromkeys(int(part) for part in numbers))
    if colon and found[0] < 1:
        raise UsageError(f"--latents {text}: there must be at least one")
    if not colon and d_sae is not None and max(found) >= d_sae:
        raise UsageError(f"--latents {max(found)}: the SAE has {d_sae} latents, from 0 on")
    return (how if colon else ""), found


def choose_latents(firing: Firing, text: str, seed: int) -> list[int]:
    """The latents that `--latents` names. UsageError if there are none such."""
    import torch

    how, numbers = parse_latents(text, len(firing.ends_S))
    counts_S = firing.counts_S()
    if not how:
        return numbers
    context_E, latent_E = firing.places_E // firing.ids_CT.shape[1], torch.repeat_interleave(counts_S)
    pairs = torch.unique(latent_E * len(firing.ids_CT) + context_E)
    contexts_S = torch.bincount(pairs // len(firing.ids_CT), minlength=len(counts_S))
    often = (contexts_S >= min(OFTEN, len(firing.ids_CT))).nonzero().squeeze(1)
    if how == "best":
        order = (firing.gain_S[often] / counts_S[often]).argsort(descending=True, stable=True)
        return often[order[: numbers[0]]].tolist()
    drawn = often[torch.randperm(len(often), generator=torch.Generator().manual_seed(seed))[: numbers[0]]]
    return drawn.sort().values.tolist()
