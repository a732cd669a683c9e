"""downstream_loss: how much worse does the language model predict with the SAE's reconstruction in its activations?

Increase of its cross-entropy, and the Kullback-Leibler divergence of its predictions from those of the clean run, both
in nats per token; special tokens keep their activations, and neither they nor what follows them is predicted. With a
scaling curve of the language model, `--curve FILE` of columns compute and loss, also the compute-equivalent: the share
of its compute with which a smaller training would have the loss that is left, by linear interpolation of log loss over
log compute. Gao et al., arXiv 2406.04093, 4.1.

Beside them the same where every activation is replaced by their mean: what there is to lose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Evaluation, Metric
from sae_variants.common.errors import UsageError

NAME = "downstream_loss"
CATEGORIES = ("sae", "mean", "model")
_NAMES = ("ce_increase", "kl", "ce", "compute_share")


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 256
    """Held-out contexts that are predicted."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    curve: str = ""
    """CSV file of columns compute and loss: the language model's on such text, over the compute of its training."""


METRICS = (
    Metric(
        "ce_increase", "increase of cross-entropy, nats", "lower",
        "eval_result_metrics.sae.ce_increase", short="CE +",
    ),
    Metric("kl", "KL divergence from the clean predictions, nats", "lower", "eval_result_metrics.sae.kl", short="KL"),
    Metric(
        "compute_share", "share of the compute that the loss left is worth", "higher",
        "eval_result_metrics.sae.compute_share", short="compute",
    ),
    Metric(
        "mean_ce_increase", "increase of cross-entropy by the mean activation", "neither",
        "eval_result_metrics.mean.ce_increase",
    ),
    Metric("mean_kl", "KL divergence by the mean activation", "neither", "eval_result_metrics.mean.kl"),
    Metric("ce", "cross-entropy of the clean run, nats", "neither", "eval_result_metrics.model.ce"),
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings, and the curve's version. UsageError for a curve that cannot be read."""
    from sae_variants.common.hashing import hash_files

    if not config.curve:
        return config, {}
    read_curve(config.curve)
    return config, {"curve": hash_files([Path(config.curve)])}


def read_curve(path: str) -> list[tuple[float, float]]:
    """(log compute, log loss), by rising compute. UsageError if the file holds no falling curve."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
        points = sorted(zip(table["compute"].astype(float), table["loss"].astype(float), strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"cannot read --curve {path}: it must be a CSV file with columns compute and loss") from error
    if len(points) < 2 or not all(0 < value < math.inf for point in points for value in point):
        raise UsageError(f"--curve {path} needs two points at least, of positive numbers")
    found = [(math.log(compute), math.log(loss)) for compute, loss in points]
    if any(a[0] == b[0] or a[1] <= b[1] for a, b in pairwise(found)):
        raise UsageError(f"--curve {path} must fall: more compute, less loss")
    return found


def compute_share(curve: list[tuple[float, float]], clean: float, left: float) -> float | None:
    """Compute that gives the loss `left` over that which gives `clean`; None where the curve does not reach."""
    import numpy as np

    losses, computes = [loss for _, loss in reversed(curve)], [compute for compute, _ in reversed(curve)]
    wanted = [math.log(left), math.log(clean)]
    if min(wanted) < losses[0] or max(wanted) > losses[-1]:
        return None
    with_sae, without = np.interp(wanted, losses, computes)
    return float(np.exp(with_sae - without))


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Means over tokens."""
    import torch

    from eval_runners.data.heldout import heldout_tokens, special_mask
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.envelope import make_output
    from sae_variants.common.console import progress
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    ids_CT = heldout_tokens(target, model, config.n_contexts, config.context_size)
    mean_D = _mean(target, model, ids_CT)
    replaced = {"sae": lambda x: sae.decode(sae.encode(x)), "mean": lambda x: mean_D.expand_as(x)}
    sums: dict[str, float] = dict.fromkeys(("count", "clean", "sae", "mean", "sae kl", "mean kl"), 0.0)
    for part_CT in progress(ids_CT.split(16), "contexts"):
        special_CT = special_mask(part_CT, model).to(model.cfg.device)
        ids = part_CT.to(model.cfg.device)
        told = ~special_CT[:, :-1] & ~special_CT[:, 1:]
        with torch.no_grad():
            clean = _predictions(model, ids, told)
            sums["count"] += int(told.sum())
            sums["clean"] += _cross_entropy(clean, ids, told)
            for name, replace in replaced.items():

                def spliced(acts: Any, hook: Any, replace: Any = replace, special_CT: Any = special_CT) -> Any:
                    return torch.where(special_CT[..., None], acts, replace(acts).to(acts))

                with model.hooks(fwd_hooks=[(target.hook_name, spliced)]):
                    found = _predictions(model, ids, told)
                sums[name] += _cross_entropy(found, ids, told)
                sums[f"{name} kl"] += (clean.exp() * (clean - found)).sum().item()
    count = max(sums["count"], 1)
    clean = sums["clean"] / count
    values: dict[str, dict[str, Any]] = {category: dict.fromkeys(_NAMES) for category in CATEGORIES}
    values["model"]["ce"] = clean
    for name in replaced:
        values[name] |= {"ce_increase": sums[name] / count - clean, "kl": sums[f"{name} kl"] / count}
    if config.curve:
        values["sae"]["compute_share"] = compute_share(read_curve(config.curve), clean, sums["sae"] / count)
    worse = not values["sae"]["kl"] < values["mean"]["kl"]
    failures = ["predictions are no nearer to the clean ones than with the mean activation"] if worse else []
    return Evaluation(make_output(NAME, config, finite_or_none(values), sae, target), {}, failures)


def _mean(target: Any, model: Any, ids_CT: Any) -> Any:
    """Mean activation [D] of tokens that are not special."""
    from eval_runners.data.heldout import activations_of

    total: Any = 0.0
    count = 0
    for x_CTD, special_CT in activations_of(ids_CT, target, model):
        kept_ND = x_CTD[~special_CT].double()
        total, count = total + kept_ND.sum(0), count + len(kept_ND)
    return (total / max(count, 1)).float()


def _predictions(model: Any, ids_CT: Any, told_CT: Any) -> Any:
    """Log-probabilities [N, V] of the tokens after those that are told."""
    return model(ids_CT, return_type="logits", prepend_bos=False)[:, :-1][told_CT].float().log_softmax(-1)


def _cross_entropy(predictions_NV: Any, ids_CT: Any, told_CT: Any) -> float:
    return -predictions_NV.gather(-1, ids_CT[:, 1:][told_CT][:, None]).sum().item()


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
