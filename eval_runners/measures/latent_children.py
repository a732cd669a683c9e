"""Children of an upper latent: the lower latents whose firing tells most about the firing of their parent.

Shapes: L lower latents, A children that fire.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.measures.excerpt_texts import excerpt_groups
from eval_runners.measures.firing import Firing
from eval_runners.measures.firing_tokens import label_by_tokens
from eval_runners.measures.information import mutual_information

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_CHILDREN, SHOWN_EXCERPTS = 8, 3
"""Children that are listed, and excerpts of each."""


class Children:
    """Latents that have a parent, and where they fire."""

    def __init__(self, parent_L: Tensor, firing: Firing, is_one_level: bool = False) -> None:
        """Keep what children are described by.

        Args:
            parent_L: upper latent that each lower latent belongs to; negative for none.
            firing: firings of the lower latents.
            is_one_level: whether parents and children are latents of the same level.
        """
        self.parent_L = parent_L.cpu()
        self.firing = firing
        self.is_one_level = is_one_level

    def place(self, latent: int, tokens_E: Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Where a latent stands in the tree.

        Args:
            latent: number of a latent; of the upper level, if there are two levels.
            tokens_E: tokens on which it fires, as in `Firing.tokens_E`.
            tokenizer: gives the texts of excerpts.

        Returns:
            `parent` (number and label) for a latent that has one, else `children`, as `describe` gives them.
        """
        if self.is_one_level and (parent := int(self.parent_L[latent])) >= 0:
            return {"parent": [parent, label_by_tokens(self.firing, parent, tokenizer)]}
        return {"children": self.describe(latent, tokens_E, tokenizer)}

    def describe(self, latent: int, parent_tokens_E: Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """The children of an upper latent, by falling mutual information with it.

        Args:
            latent: number of the upper latent.
            parent_tokens_E: tokens on which the upper latent fires, as in `Firing.tokens_E`.
            tokenizer: gives the texts of excerpts.

        Returns:
            `count` and `alive` (numbers of children, and of those that fire); `rows` with the mutual information in
            bits, less its bias, of the most informative children.
        """
        counts_L = self.firing.counts_S()
        children = [int(child) for child in (self.parent_L == latent).nonzero().squeeze(1)]
        alive = [child for child in children if counts_L[child]]
        if not alive:
            return {"count": len(children), "alive": 0, "rows": []}
        both_1A = torch.tensor(
            [[int(torch.isin(self.firing.firings_of(child)[0], parent_tokens_E).sum()) for child in alive]]
        )
        bits_1A, bias_1A = mutual_information(
            both_1A.double(), torch.tensor([len(parent_tokens_E)]), counts_L[alive], self.firing.n_tokens
        )
        rows = [
            {
                "latent": child,
                "label": label_by_tokens(self.firing, child, tokenizer),
                "bits": float(bits_1A[0, number] - bias_1A[0, number]),
                "density": int(counts_L[child]) / self.firing.n_tokens,
                "within": int(both_1A[0, number]) / int(counts_L[child]),
                "top": excerpt_groups(islice(self.firing.excerpts(child), SHOWN_EXCERPTS), tokenizer, SHOWN_EXCERPTS)[
                    "top"
                ],
            }
            for number, child in enumerate(alive)
        ]
        rows.sort(key=lambda row: -row["bits"])
        return {"count": len(children), "alive": len(alive), "rows": rows[:SHOWN_CHILDREN]}
