"""The code of a tree of latents: parents, and children that fire only where their parent does.

    p = keep(x W_P + b_P)                                         parents
    c = keep(where(parent fires, (x - p D_P) W_C + b_C, 0))       children, which encode what the parents left

With a factor `ungated` above 0 the gate is open a little: a child whose parent does not fire is selected by that much
of its pre-activation, instead of 0, and fires with the whole.

The first latents are the parents. The next ones are children, in the order of their parents, equally many each.
Parents beyond those have none.

Shapes: D = d_in, S = d_sae = P parents + C children, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_variants.two_level.saved import NO_PARENT

PARENTS, CHILDREN = 0, 1
"""Numbers of the levels."""


@dataclass(frozen=True)
class Tree:
    """Which latent is whose child, and how far the gate is open."""

    d_sae: int
    """Latents S."""
    children: int
    """Children of a parent."""
    ungated: float = 0.0
    """Factor by which a child without its parent is selected, between 0 and 1; 0 closes the gate."""

    def __post_init__(self) -> None:
        if not 1 <= self.children < self.d_sae:
            raise ValueError(f"children must be at least 1 and below d_sae = {self.d_sae}, not {self.children}")
        if not 0 <= self.ungated <= 1:
            raise ValueError(f"ungated must be between 0 and 1, not {self.ungated:g}")

    @property
    def n_children(self) -> int:
        """Children C of all parents."""
        return self.d_sae // (self.children + 1) * self.children

    @property
    def n_parents(self) -> int:
        """Parents P, with children or without."""
        return self.d_sae - self.n_children

    @property
    def parents(self) -> slice:
        """The parents among the latents."""
        return slice(0, self.n_parents)

    @property
    def below(self) -> slice:
        """The children among the latents."""
        return slice(self.n_parents, self.d_sae)

    @property
    def parent_S(self) -> Tensor:
        """Parent [S] of each latent; `NO_PARENT` for a parent."""
        parent_C = torch.arange(self.n_children // self.children).repeat_interleave(self.children)
        return torch.cat([torch.full((self.n_parents,), NO_PARENT), parent_C])

    def gate(self, parents: Tensor) -> Tensor:
        """Return whether the parent of each child fires [..., C], from the activations of the parents [..., P]."""
        fires = parents[..., : self.n_children // self.children] > 0
        return fires.repeat_interleave(self.children, dim=-1)


def encode_tree(
    x: Tensor,
    tree: Tree,
    product: Callable[[Tensor, slice], Tensor],
    decode: Callable[[Tensor], Tensor],
    keep: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the activations [..., S] and pre-activations [..., S] of inputs [..., D].

    Args:
        x: Inputs, without their bias.
        tree: Which latent is whose child.
        product: Function from inputs and a part of the latents to their pre-activations.
        decode: Function from activations of the parents [..., P] to what they write [..., D], without bias.
        keep: Function from the pre-activations of a level and its number to its activations.
    """
    pre_parents = product(x, tree.parents)
    parents = keep(pre_parents, PARENTS)
    pre_children = product(x - decode(parents), tree.below)
    gate = tree.gate(parents)
    children = keep(torch.where(gate, pre_children, tree.ungated * pre_children), CHILDREN)
    if tree.ungated:
        children = torch.where(gate, children, children / tree.ungated)
    return torch.cat([parents, children], dim=-1), torch.cat([pre_parents, pre_children], dim=-1)
