"""What a case study shows of latents of an SAE that was trained on a synthetic model, whose features are known.

There is no text: a latent is described by the feature whose direction is nearest to its decoder row, by how well it
detects that feature, and by the features that are there where it fires.

Shapes: C contexts, T tokens of a context, N tokens, F features, S latents, E firings, P pairs of a token and a feature
that fires on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.measures.firing import Firing, gather_firing
from eval_runners.measures.latent_relations import LatentRelations
from eval_runners.measures.latent_sheet import firing_row, histogram_row
from eval_runners.measures.nearest import nearest, unit
from eval_runners.measures.true_features import Sample
from eval_runners.measures.true_tree import NONE, true_tree
from sae_variants.common.console import progress
from sae_variants.two_level.saved import TwoLevelSAE, lower_level_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sae_lens import SAE

    from eval_runners.measures.latent_choice import LatentChoice
    from sae_variants.language_model.target import Target
    from sae_variants.synthetic.model import SyntheticData

SHOWN_FEATURES, SHOWN_CHILDREN = 6, 12
"""Features that are listed, and children."""


def describe_true_latents(
    sae: SAE[Any], target: Target, data: SyntheticData, choice: LatentChoice, sample: Sample
) -> dict[str, Any]:
    """Measure the chosen latents against the true features.

    Args:
        sae: in inference form. One with two levels also has its children described.
        target: what the SAE was trained on.
        data: the target's synthetic model.
        choice: the latents.
        sample: the tokens, which no training saw; its seed is that of `random` latents, too.

    Returns:
        `about` and `latents`, as `describe_latents` returns them; each latent has `truth`, and no text.

    Raises:
        UsageError: no latent fires often enough, or a number is not that of a latent.
    """
    choice.check_exist(sae.cfg.d_sae)
    sheet = TrueSheet(sae, data, sample)
    rows = [sheet.describe(latent) for latent in progress(choice.choose_some(sheet.firing, sample.seed), "latents")]
    about = {
        "model": target.title,
        "hook": target.hook_name,
        "d_sae": sae.cfg.d_sae,
        "tokens": sheet.firing.n_tokens,
        "contexts": sample.n_contexts,
        "alive": int((sheet.firing.counts_S() > 0).sum()),
        "features": len(sheet.count_F),
        "two_levels": isinstance(sae, TwoLevelSAE),
        "latents": choice.text,
    }
    return {"about": about, "latents": rows}


class TrueSheet:
    """An SAE on a sample of a synthetic model, ready to describe latents of it one after the other."""

    def __init__(self, sae: SAE[Any], data: SyntheticData, sample: Sample) -> None:
        """Sample tokens, and find where features and latents fire.

        Args:
            sae: in inference form.
            data: the synthetic model.
            sample: the tokens.
        """
        self.data, self.ids_CT = data, torch.zeros(sample.n_contexts, sample.context_size, dtype=torch.long)
        F = len(data.directions_FD)
        tokens, features, self.strength_F, first = [], [], torch.zeros(F), 0
        self.sample = sample.n_contexts, sample.context_size, "case study", sample.seed
        for acts_CTF in data.features(*self.sample):
            acts_NF = acts_CTF.flatten(0, 1).cpu()
            token_P, feature_P = acts_NF.nonzero(as_tuple=True)
            tokens.append(token_P + first)
            features.append(feature_P)
            self.strength_F += acts_NF.sum(0)
            first += len(acts_NF)
        self.token_P, self.feature_P = torch.cat(tokens), torch.cat(features)
        self.count_F = torch.bincount(self.feature_P, minlength=F)
        self.W_dec_SD = sae.W_dec.detach()
        self.firing, self.feature_S = self._fire(sae)
        self.rank_S = self.firing.gain_S.argsort(descending=True).argsort()
        self.relations = LatentRelations(sae.W_dec, self.firing, lambda latent: f"feature {self.feature_S[latent]}")
        hierarchy = data.model.hierarchy
        self.parent_F = None if hierarchy is None else true_tree(hierarchy, F).parent_F
        self.child_firing, self.child_feature, self.parent_of, self.child_rows = self.firing, self.feature_S, None, None
        if isinstance(sae, TwoLevelSAE):
            lower = lower_level_of(sae)
            self.parent_of, self.child_rows = sae.parent_L.cpu(), lower.W_dec.detach()
            self.child_firing, self.child_feature = self._fire(lower)
        elif (parent_S := getattr(sae, "parent_S", None)) is not None:
            self.parent_of, self.child_rows = parent_S.cpu(), self.W_dec_SD
        self.is_one_level = self.child_firing is self.firing

    def _fire(self, sae: SAE[Any]) -> tuple[Firing, Tensor]:
        """Firings of an SAE, and the feature of each of its latents."""

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for acts_CTF in self.data.features(*self.sample):
                yield self.data.embed(acts_CTF), acts_CTF.new_zeros(acts_CTF.shape[:2], dtype=torch.bool)

        return gather_firing(sae, batches(), self.ids_CT), nearest(sae.W_dec, self.data.directions_FD).feature_S.cpu()

    def describe(self, latent: int) -> dict[str, Any]:
        """All that the page shows of a latent."""
        tokens_E, acts_E = self.firing.firings_of(latent)
        row: dict[str, Any] = {
            **firing_row(self.firing, self.rank_S, latent),
            "label": self.relations.label_of(latent),
            "truth": self.compare(self.W_dec_SD[latent], tokens_E),
            **self.relations.describe(latent),
        }
        row["score"] = row["truth"]["f1"]
        if len(tokens_E):
            row["histogram"] = histogram_row(acts_E)
        if self.parent_of is not None:
            if self.is_one_level and (parent := int(self.parent_of[latent])) >= 0:
                row["parent"] = [parent, self.relations.label_of(parent)]
            else:
                row["true_children"] = self.children(latent, tokens_E)
        return row

    def compare(self, row_D: Tensor, tokens_E: Tensor) -> dict[str, Any]:
        """Compare a latent with the features.

        Args:
            row_D: its decoder row.
            tokens_E: tokens on which it fires.

        Returns:
            `feature`, the one with the largest absolute cosine; `cosine`; `precision`, `recall` and `f1` of the
            latent as its detector, None for one that does not fire; `rate`, `strength`, `half_life` and `parent` of the
            feature; `nearest`, the features with the next largest cosines; `there`, features with the largest share of
            the tokens on which the latent fires, above their rate.
        """
        cosine_F = (unit(self.data.directions_FD) @ unit(row_D.to(self.data.directions_FD))).cpu()
        largest = cosine_F.abs().topk(min(SHOWN_FEATURES, len(cosine_F))).indices.tolist()
        feature, n = largest[0], self.firing.n_tokens
        fires_N = torch.zeros(n, dtype=torch.bool)
        fires_N[tokens_E] = True
        both_F = torch.bincount(self.feature_P[fires_N[self.token_P]], minlength=len(cosine_F))
        both, of_latent, of_feature = int(both_F[feature]), len(tokens_E), int(self.count_F[feature])
        rate_F, share_F = self.count_F.double() / n, both_F.double() / max(of_latent, 1)
        often = (share_F - rate_F).topk(min(SHOWN_FEATURES, len(cosine_F))).indices.tolist() if of_latent else []
        parent = NONE if self.parent_F is None else int(self.parent_F[feature])
        half_lives_F = self.data.half_lives_F
        return {
            "feature": feature,
            "cosine": float(cosine_F[feature]),
            "precision": both / of_latent if of_latent else None,
            "recall": both / of_feature if of_latent and of_feature else None,
            "f1": 2 * both / (of_latent + of_feature) if of_latent else None,
            "rate": float(rate_F[feature]),
            "strength": float(self.strength_F[feature]) / max(of_feature, 1),
            "half_life": None if half_lives_F is None else float(half_lives_F[feature]),
            "parent": None if parent == NONE else parent,
            "nearest": [[f, float(cosine_F[f])] for f in largest[1:]],
            "there": [[f, float(share_F[f]), float(rate_F[f])] for f in often if share_F[f] > rate_F[f]],
        }

    def children(self, latent: int, tokens_E: Tensor) -> dict[str, Any]:
        """The children of a latent, the most frequent ones first, and whether the true tree has these edges.

        Args:
            latent: number of the parent.
            tokens_E: tokens on which it fires.

        Returns:
            `count` and `alive` (numbers of children, and of those that fire); `right`, how many of these have a feature
            whose true parent is the feature of this latent, None without a true tree; `rows`, of the most frequent.
        """
        assert self.parent_of is not None, "an SAE whose latents have parents"
        assert self.child_rows is not None, "an SAE whose latents have parents"
        counts_L, feature = self.child_firing.counts_S(), int(self.feature_S[latent])
        children = (self.parent_of == latent).nonzero().squeeze(1)
        alive = children[counts_L[children] > 0]
        alive = alive[counts_L[alive].argsort(descending=True, stable=True)].tolist()
        edges = [self._edge(int(self.child_feature[child]), feature) for child in alive]
        rows = []
        for child, edge in list(zip(alive, edges, strict=True))[:SHOWN_CHILDREN]:
            own_E, _ = self.child_firing.firings_of(child)
            truth = self.compare(self.child_rows[child], own_E)
            within = float(torch.isin(own_E, tokens_E).float().mean())
            names = ("feature", "cosine", "f1", "parent")
            facts = {"density": len(own_E) / self.firing.n_tokens, "within": within, "edge": edge}
            rows.append({"latent": child, **{name: truth[name] for name in names}, **facts})
        right = None if self.parent_F is None else edges.count("true")
        return {"count": len(children), "alive": len(alive), "right": right, "rows": rows}

    def _edge(self, child: int, parent: int) -> str | None:
        """The true tree on two features: "true" parent and child, the "same" one, or "false"; None without a tree."""
        if self.parent_F is None:
            return None
        return "same" if child == parent else "true" if int(self.parent_F[child]) == parent else "false"
