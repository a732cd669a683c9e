"""Logistic probes for the true features on the activations themselves: the F1 that a linear detector reaches.

Shapes: N tokens, D = d_in, F features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval_runners.store.cache import cached_folder
from sae_variants.common.console import progress

if TYPE_CHECKING:
    from sae_variants.synthetic.model import SyntheticData

SCORES = "f1.json"
STEPS, LEARNING_RATE, ROWS = 600, 0.05, 1024
"""Of Adam, on batches of at most that many tokens; the rate falls to zero."""


def cached_ceiling(data: SyntheticData, model_name: str, n_contexts: int, context_size: int, seed: int) -> float:
    """Return the mean F1 over features of `probe_f1`, kept in the cache.

    Tokens of a sequence are sampled one by one, as many as its contexts hold: they have the same distribution, and a
    context holds few independent firings of a feature that lives long.

    Args:
        data: The synthetic model.
        model_name: Its name, which holds the hash of its config.
        n_contexts: Contexts to fit on, and as many to score on.
        context_size: Tokens T in a context.
        seed: Seed of both samples.
    """
    if data.half_lives_F is not None:
        n_contexts, context_size = n_contexts * context_size, 1

    def make(folder: Path) -> None:
        (folder / SCORES).write_text(json.dumps(probe_f1(data, n_contexts, context_size, seed).tolist()))

    key = {
        "logistic probes of": model_name,
        "contexts": [n_contexts, context_size, seed],
        "origin": data.origin.partition(";")[0],
        "versions": {package: version(package) for package in ("sae-lens", "torch")},
    }
    return fmean(json.loads((cached_folder(key, make) / SCORES).read_text()))


def probe_f1(data: SyntheticData, n_contexts: int, context_size: int, seed: int) -> Tensor:
    """Fit a logistic probe for every feature, choose its threshold, and return its F1 on other tokens.

    Args:
        data: The synthetic model.
        n_contexts: Contexts to fit on, and as many to score on.
        context_size: Tokens T in a context.
        seed: Seed of both samples.

    Returns:
        F1 [F] of each probe at the threshold that is best on the first batch of the tokens that it is fitted on.
    """
    weights_DF, bias_F, mean_D, scale = _fit(data, n_contexts, context_size, seed)

    def scores(sample: str) -> Iterator[tuple[Tensor, Tensor]]:
        for acts_CTF in data.features(n_contexts, context_size, sample, seed):
            x_ND = (data.embed(acts_CTF).flatten(0, 1) - mean_D) / scale
            yield x_ND @ weights_DF + bias_F, (acts_CTF > 0).flatten(0, 1)

    threshold_F = _best_threshold(*next(scores("probe training")))
    counts = torch.zeros(3, len(threshold_F), device=threshold_F.device)
    for score_NF, truth_NF in scores("probe test"):
        said_NF = score_NF > threshold_F
        counts += torch.stack([(said_NF & truth_NF).sum(0), said_NF.sum(0), truth_NF.sum(0)])
    return 2 * counts[0] / (counts[1] + counts[2]).clamp(min=1)


def _fit(data: SyntheticData, n_contexts: int, context_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights [D, F] and bias [F] of the probes, and mean [D] and scale of their inputs."""
    batches = [(data.embed(acts).flatten(0, 1), (acts > 0).flatten(0, 1)) for acts in
               data.features(n_contexts, context_size, "probe training", seed)]  # fmt: skip
    x_ND, y_NF = (torch.cat(parts) for parts in zip(*batches, strict=True))
    mean_D, scale = x_ND.mean(0), x_ND.std()
    x_ND = (x_ND - mean_D) / scale
    rate_F = y_NF.float().mean(0).clamp(1e-4, 1 - 1e-4)
    weights_DF = torch.zeros(x_ND.shape[1], y_NF.shape[1], device=x_ND.device, requires_grad=True)
    bias_F = (rate_F / (1 - rate_F)).log().requires_grad_()
    optimizer = torch.optim.Adam([weights_DF, bias_F], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in progress(range(STEPS), "probes"):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        rows = torch.randint(len(x_ND), (min(ROWS, len(x_ND)),), generator=generator)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            x_ND[rows] @ weights_DF + bias_F, y_NF[rows].float(), reduction="sum"
        )
        optimizer.zero_grad()
        (loss / len(rows)).backward()
        optimizer.step()
    return weights_DF.detach(), bias_F.detach(), mean_D, scale


def _best_threshold(score_NF: Tensor, truth_NF: Tensor) -> Tensor:
    """Return the thresholds [F] of best F1: halfway between the last score above and the next one below."""
    score_NF, order_NF = score_NF.sort(0, descending=True)
    true_NF = truth_NF.gather(0, order_NF).cumsum(0)
    said_N1 = torch.arange(1, len(score_NF) + 1, device=score_NF.device)[:, None]
    best_1F = (2 * true_NF / (said_N1 + true_NF[-1:])).argmax(0, keepdim=True)
    below_1F = (best_1F + 1).clamp(max=len(score_NF) - 1)
    return (score_NF.gather(0, best_1F) + score_NF.gather(0, below_1F)).squeeze(0) / 2
