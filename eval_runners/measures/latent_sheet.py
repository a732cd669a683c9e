"""Everything that a case study shows of single latents: contexts, logits, relations, patterns, ablation, children.

Shapes: C contexts, T tokens of a context without BOS, D = d_in, S = d_sae, L lower latents, B bins of positions, E
firings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eval_runners.data.heldout import prepend_bos, tokenizer_of
from eval_runners.measures.ablation import in_float32
from eval_runners.measures.causal_trace import trace_latent
from eval_runners.measures.excerpt_texts import excerpt_groups
from eval_runners.measures.firing import Firing, collect_firing
from eval_runners.measures.firing_tokens import describe_firing_tokens, label_by_tokens
from eval_runners.measures.latent_children import Children
from eval_runners.measures.latent_dashboard import Histogram
from eval_runners.measures.latent_relations import LatentRelations
from eval_runners.measures.logit_effects import logit_effects
from eval_runners.measures.token_patterns import REPLACEMENTS, describe_by_patterns, sample_replacements
from sae_variants.common.console import progress
from sae_variants.two_level.saved import TwoLevelSAE, lower_level_of

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

    from eval_runners.measures.latent_choice import LatentChoice
    from sae_variants.language_model.target import Target

POSITION_BINS = 16
"""Largest number of bins of positions."""
GOOD_SCORE, LABEL_PATTERNS = 0.5, 3
"""F1 from which patterns are a latent's label, in place of the tokens on which it fires, and how many are."""
ABLATED_CONTEXTS, RANDOM_DIRECTIONS = 6, 3
"""Contexts in which a latent is ablated, and random directions that it is compared with."""


def describe_latents(
    sae: SAE[Any],
    target: Target,
    model: HookedTransformer,
    choice: LatentChoice,
    n_contexts: int,
    context_size: int,
    seed: int,
) -> dict[str, Any]:
    """Measure the chosen latents on held-out text.

    Args:
        sae: in inference form. One with two levels also has its children described.
        target: the hook and the text.
        model: the target's language model.
        choice: the latents.
        n_contexts: held-out contexts to read.
        context_size: tokens in a context, BOS included.
        seed: seed of `random` latents, contexts to ablate in, random directions, and tokens tried in patterns.

    Returns:
        `about` (the SAE, the text and the choice) and `latents` (a dict per latent), as the page reads them.

    Raises:
        UsageError: no latent fires often enough, or a number is not that of a latent.
    """
    choice.check_exist(sae.cfg.d_sae)
    firing = collect_firing(sae, target, model, n_contexts, context_size)
    chosen = choice.choose_some(firing, seed)
    sheet = make_sheet(sae, target, model, firing, seed)
    with in_float32(model):
        rows = [sheet.describe(latent) for latent in progress(chosen, "latents")]
    return {"about": sheet.about() | {"latents": choice.text}, "latents": rows}


def make_sheet(sae: SAE[Any], target: Target, model: HookedTransformer, firing: Firing, seed: int) -> Sheet:
    """Make an SAE ready to be described; a lower level, if it has one, is encoded on the same text.

    Args:
        sae: in inference form.
        target: the hook and the text.
        model: the target's language model.
        firing: firings of the SAE.
        seed: seed of contexts to ablate in, random directions, and tokens tried in patterns.
    """
    if isinstance(sae, TwoLevelSAE):
        lower, parent_L = lower_level_of(sae), sae.parent_L.cpu()
        n_contexts, length = firing.ids_CT.shape
        children = Children(parent_L, collect_firing(lower, target, model, n_contexts, length + 1))
        return Sheet(sae, target, model, firing, seed, lower, parent_L, children)
    parent_S = getattr(sae, "parent_S", None)
    children = None if parent_S is None else Children(parent_S, firing, is_one_level=True)
    return Sheet(sae, target, model, firing, seed, children=children)


@dataclass
class Sheet:
    """An SAE on its text, ready to describe latents of it one after the other."""

    sae: SAE[Any]
    target: Target
    model: HookedTransformer
    firing: Firing
    seed: int
    lower: SAE[Any] | None = None
    """The lower level of an SAE with two levels."""
    parent_L: Tensor | None = None
    """Upper latent that each lower latent belongs to."""
    children: Children | None = None
    """The lower level on the same text, or the SAE's own latents if these form a tree."""
    relations: LatentRelations = field(init=False)
    """Lists related latents."""
    rank_S: Tensor = field(init=False)
    """Rank of each latent by the error without it, from 0."""
    replacements: list[int] = field(init=False)
    """Tokens to try in patterns."""
    generator: torch.Generator = field(init=False)
    """Draws contexts to ablate in, and random directions."""

    def __post_init__(self) -> None:
        """Rank the latents, and draw what all descriptions share."""
        label_of = partial(label_by_tokens, self.firing, tokenizer=tokenizer_of(self.model))
        self.relations = LatentRelations(self.sae.W_dec, self.firing, label_of)
        self.rank_S = self.firing.gain_S.argsort(descending=True).argsort()
        self.replacements = sample_replacements(self.firing.ids_CT, self.model, REPLACEMENTS, self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)

    def about(self) -> dict[str, Any]:
        """What the page says of the SAE and of the text."""
        return {
            "model": self.target.title,
            "hook": self.target.hook_name,
            "d_sae": self.sae.cfg.d_sae,
            "tokens": self.firing.n_tokens,
            "contexts": len(self.firing.ids_CT),
            "alive": int((self.firing.counts_S() > 0).sum()),
            "two_levels": self.lower is not None,
        }

    def describe(self, latent: int) -> dict[str, Any]:
        """All that the page shows of a latent. What needs text on which it fires is left out where it does not."""
        tokenizer, (tokens_E, acts_E) = tokenizer_of(self.model), self.firing.firings_of(latent)
        row: dict[str, Any] = {
            **firing_row(self.firing, self.rank_S, latent),
            **logit_effects(self.model, self.sae.W_dec.detach()[latent]),
            "label": label_by_tokens(self.firing, latent, tokenizer),
            "score": None,
            **self.relations.describe(latent),
        }
        if not len(tokens_E):
            return row
        row["histogram"] = histogram_row(acts_E)
        row["tokens"] = describe_firing_tokens(self.firing, latent, tokenizer)
        row |= excerpt_groups(self.firing.excerpts(latent), tokenizer)
        row["positions"] = position_rates(self.firing, tokens_E)
        row["patterns"] = self.patterns(latent)
        row["score"] = row["patterns"]["firing f1"]
        if row["patterns"]["patterns"] and (row["score"] or 0.0) >= GOOD_SCORE:
            row["label"] = ", ".join(row["patterns"]["patterns"][:LABEL_PATTERNS])
        row["effect"] = self.ablation_effect(latent)
        if self.children is not None:
            row |= self.children.place(latent, tokens_E, tokenizer)
        return row

    def patterns(self, latent: int) -> dict[str, Any]:
        """Token patterns of a latent, and how well they predict where it fires."""
        row = describe_by_patterns(
            self.sae,
            self.target,
            self.model,
            latent,
            self.firing.ids_CT,
            self.firing.acts_CT(latent),
            self.firing.special_CT,
            self.replacements,
        )
        return {name: row[name] for name in ("patterns", "firing precision", "firing recall", "firing f1")}

    def ablation_effect(self, latent: int) -> dict[str, Any]:
        """Effect of ablating a latent on the next token's prediction, in sampled contexts in which it fires."""
        acts_CT = self.firing.acts_CT(latent)
        contexts = (acts_CT > 0).any(1).nonzero().squeeze(1)
        contexts = contexts[torch.randperm(len(contexts), generator=self.generator)[:ABLATED_CONTEXTS]]
        return trace_latent(
            self.sae,
            self.lower,
            self.parent_L,
            self.model,
            self.target.hook_name,
            prepend_bos(self.firing.ids_CT[contexts], self.model),
            pad(acts_CT[contexts] > 0, (1, 0)),
            latent,
            {"children": latent},
            RANDOM_DIRECTIONS,
            self.generator,
        )


def firing_row(firing: Firing, rank_S: Tensor, latent: int) -> dict[str, Any]:
    """A latent's number, how often and how strongly it fires, and its rank among all, from 0 in `rank_S`."""
    tokens_E, acts_E = firing.firings_of(latent)
    return {
        "latent": latent,
        "density": len(tokens_E) / firing.n_tokens,
        "rank": int(rank_S[latent]) + 1,
        "gain": float(firing.gain_S[latent]),
        "max": float(acts_E.max()) if len(acts_E) else 0.0,
    }


def histogram_row(acts_E: Tensor) -> dict[str, Any]:
    """Counts of activations in bars of equal width, and the `low` and `high` end of their range."""
    histogram = Histogram.of(acts_E)
    half = (histogram.centres[1] - histogram.centres[0]) / 2
    low, high = histogram.centres[0] - half, histogram.centres[-1] + half
    return {"low": float(f"{low:.3g}"), "high": float(f"{high:.3g}"), "counts": histogram.counts}


def position_rates(firing: Firing, tokens_E: Tensor) -> list[float]:
    """Firing rate of a latent in equal stretches of a context, relative to its rate over all positions.

    Args:
        firing: firings of the SAE.
        tokens_E: tokens on which the latent fires, as in `Firing.tokens_E`.

    Returns:
        Rates [B] with three digits; all 1 for a latent that fires independently of the position.
    """
    length = firing.ids_CT.shape[1]
    bins = min(POSITION_BINS, length)
    tokens_B = torch.bincount(((~firing.special_CT).nonzero()[:, 1] * bins) // length, minlength=bins)
    firings_B = torch.bincount((tokens_E % length) * bins // length, minlength=bins)
    rate_B = firings_B / tokens_B.clamp(min=1) / (len(tokens_E) / firing.n_tokens)
    return [float(f"{rate:.3g}") for rate in rate_B.tolist()]
