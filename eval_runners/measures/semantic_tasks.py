"""Binary tasks of `semantics`: topics of documents, kinds of tokens, and tokens inside code.

Shapes: N training examples, M test examples, S = d_sae, D = d_in, C contexts, T tokens in a context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eval_runners.data.documents import DocumentActivations, encode_rows
from eval_runners.data.heldout import activations_of, heldout_tokens, special_mask
from eval_runners.measures.token_kinds import TOKEN_KINDS, token_kinds
from sae_variants.common.console import progress

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

    from sae_variants.language_model.target import Target

FEWEST_TOKENS = 8
"""Tokens needed on each side of a token probe."""


@dataclass(frozen=True)
class ProbeTask:
    """Latents of the examples of a binary task, with as many examples on either side."""

    question: str
    """`topic` or `token`."""
    dataset: str
    label: str
    """Class or kind of token that is separated from the rest."""
    x_NS: np.ndarray
    y_N: np.ndarray
    """1 for examples of the class, else 0."""
    test_x_MS: np.ndarray
    test_y_M: np.ndarray

    def accuracy(self, group: slice, k: int) -> float:
        """Test accuracy of a probe on k of the latents of a group."""
        return probe_accuracy(self.x_NS[:, group], self.y_N, self.test_x_MS[:, group], self.test_y_M, k)


def probe_accuracy(x_NS: np.ndarray, y_N: np.ndarray, test_x_MS: np.ndarray, test_y_M: np.ndarray, k: int) -> float:
    """Test accuracy of a logistic probe on the k columns whose means differ most between the two sides.

    Args:
        x_NS: training examples.
        y_N: 1 or 0 for each training example.
        test_x_MS: test examples.
        test_y_M: 1 or 0 for each test example.
        k: columns that the probe reads.
    """
    from sklearn.linear_model import LogisticRegression

    difference_S = np.abs(x_NS[y_N == 1].mean(0) - x_NS[y_N == 0].mean(0))
    columns = np.argsort(-difference_S, kind="stable")[:k]
    probe = LogisticRegression(max_iter=1000).fit(x_NS[:, columns], y_N)
    return float(probe.score(test_x_MS[:, columns], test_y_M))


def topic_tasks(sae: SAE[Any], datasets: Mapping[str, DocumentActivations], seed: int) -> Iterator[ProbeTask]:
    """Separate each class of each dataset from as many documents of the other classes.

    Args:
        sae: SAE in inference form.
        datasets: documents by the name of their dataset.
        seed: seed of the choice of documents of other classes.
    """
    generator = np.random.default_rng(seed)
    for name in progress(list(datasets), "topics"):
        parts = [
            {label: means_dS.numpy() for label, means_dS in means.items()}
            for means in datasets[name].means(sae.encode, sae.W_dec.device)
        ]
        for label in parts[0]:
            sides = []
            for means in parts:
                others = np.concatenate([rows for other, rows in means.items() if other != label])
                chosen = generator.permutation(len(others))[: len(means[label])]
                sides += [np.concatenate([means[label], others[chosen]]), np.repeat([1, 0], len(means[label]))]
            yield ProbeTask("topic", name, label, *sides)


def token_kind_tasks(
    sae: SAE[Any],
    target: Target,
    model: HookedTransformer,
    n_contexts: int,
    context_size: int,
    tokens_per_kind: int,
    seed: int,
) -> Iterator[ProbeTask]:
    """Separate each kind of token from the other tokens of held-out text. Kinds that the text lacks are left out.

    Args:
        sae: SAE in inference form.
        target: names the text and the hook.
        model: the target's language model.
        n_contexts: held-out contexts.
        context_size: tokens in a context, BOS included.
        tokens_per_kind: largest number of tokens on each side; a quarter of them are test examples.
        seed: seed of the choice of tokens.
    """
    ids_CT = heldout_tokens(target, model, n_contexts, context_size)
    ordinary_CT = ~special_mask(ids_CT, model)
    sides = _choose_tokens(ids_CT[ordinary_CT], model, tokens_per_kind, seed)
    if not sides:
        return
    needed = np.unique(np.concatenate([numbers for pair in sides.values() for numbers in pair]))
    is_needed_CT = torch.zeros_like(ordinary_CT)
    is_needed_CT.view(-1)[ordinary_CT.view(-1).nonzero().squeeze(1)[needed]] = True
    latents_NS = _encode_at(sae, target, model, ids_CT, is_needed_CT)
    for kind, pair in sides.items():
        cuts = (
            [numbers[: len(numbers) * 3 // 4] for numbers in pair],
            [numbers[len(numbers) * 3 // 4 :] for numbers in pair],
        )
        arrays = []
        for part in cuts:
            rows = np.searchsorted(needed, np.concatenate(part))
            arrays += [latents_NS[rows], np.repeat([1, 0], [len(numbers) for numbers in part])]
        yield ProbeTask("token", "heldout", kind, *arrays)


def _choose_tokens(
    ids_N: Tensor, model: HookedTransformer, tokens_per_kind: int, seed: int
) -> dict[str, list[np.ndarray]]:
    """Draw tokens of each kind, and as many others; kinds with too few on either side are left out.

    Returns:
        Kind -> indices into `ids_N` of tokens of that kind, and of other tokens.
    """
    generator = np.random.default_rng(seed)
    tokenizer: Any = model.tokenizer
    kinds_of_id = {token: token_kinds(tokenizer.decode([token])) for token in ids_N.unique().tolist()}
    sides = {}
    for kind in TOKEN_KINDS:
        is_kind_N = np.array([kind in kinds_of_id[token] for token in ids_N.tolist()])
        size = min(tokens_per_kind, is_kind_N.sum(), (~is_kind_N).sum())
        if size >= FEWEST_TOKENS:
            sides[kind] = [generator.permutation(np.flatnonzero(mask))[:size] for mask in (is_kind_N, ~is_kind_N)]
    return sides


@torch.no_grad()
def _encode_at(
    sae: SAE[Any], target: Target, model: HookedTransformer, ids_CT: Tensor, is_needed_CT: Tensor
) -> np.ndarray:
    """Latents [N, S] at the tokens of a mask, context by context."""
    per_batch = 16
    # BOS, which `activations_of` leaves out, is special and thus never needed.
    batches = zip(activations_of(ids_CT, target, model, per_batch), is_needed_CT[:, 1:].split(per_batch), strict=True)
    return torch.cat(
        [sae.encode(x_CTD[needed.to(x_CTD.device)]).float().cpu() for (x_CTD, _), needed in batches]
    ).numpy()


def code_task(
    sae: SAE[Any],
    name: str,
    code: DocumentActivations,
    others: Sequence[DocumentActivations],
    sizes: Sequence[tuple[int, int]],
    seed: int,
) -> ProbeTask:
    """Separate tokens of documents of code from tokens of other documents.

    Args:
        sae: SAE in inference form.
        name: dataset of the code.
        code: its documents.
        others: documents without code.
        sizes: for training and for test, documents to draw on each side and the largest number of their tokens.
        seed: seed of the choice of documents and tokens.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for part, (n_documents, n_tokens) in enumerate(sizes):
        sides = []
        for datasets in ([code], others):
            documents = [x_nD for dataset in datasets for x_nD in dataset.documents(part)]
            x_ND = torch.cat([documents[i] for i in generator.permutation(len(documents))[:n_documents]])
            sides.append(x_ND[generator.permutation(len(x_ND))[:n_tokens]])
        size = min(map(len, sides))
        x_ND = torch.cat([side[:size] for side in sides])
        latents_NS = torch.cat(list(encode_rows(sae.encode, x_ND, sae.W_dec.device)))
        arrays += [latents_NS.numpy(), np.repeat([1, 0], size)]
    return ProbeTask("token", name, "inside code", *arrays)
