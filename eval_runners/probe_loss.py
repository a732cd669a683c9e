"""probe_loss: is there one latent for what is known to be in the text?

Each class of labelled datasets, told from the others, is a binary task. Of each task the least cross-entropy, in nats,
that a logistic probe on a single latent's mean over the document has, over all latents: mean over tasks, ln 2 where
latents know nothing. Latents are chosen, and probes fitted by Newton's method, on training documents; the loss is that
of the chosen one on test documents. Gao et al., arXiv 2406.04093, 4.2. Beside it the same of the residual stream's own
channels.

Shapes: N documents, S latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Evaluation, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "probe_loss"
CATEGORIES = ("latents", "residual")
_NAMES = ("loss", "train_loss", "tasks")
STEPS = 30
"""Newton's, at most."""


@dataclass(frozen=True)
class EvalConfig:
    dataset_names: tuple[str, ...] = (
        "sandbox/occupation", "sandbox/ag_news", "sandbox/code", "sandbox/it_ticket", "sandbox/yelp_sentiment",
    )  # fmt: skip
    """Labelled datasets, parted by commas."""
    train_documents: int = 200
    """Documents that probes are fitted on, half of them of the class."""
    test_documents: int = 100
    """Documents that the chosen probe is tested on, half of them of the class."""
    context_size: int = 128
    """Tokens of a document that are read, BOS included."""
    ridge: float = 1e-3
    """Penalty on the squared weight of a latent of unit variance; one that is always right has no best weight."""
    seed: int = 0
    """Seed of the choice of documents."""


METRICS = (
    Metric(
        "loss", "loss of the best latent's probe, nats", "lower", "eval_result_metrics.latents.loss",
        short="probe loss", references=(("residual stream", "eval_result_metrics.residual.loss"),),
    ),
    Metric(
        "train_loss", "its loss on the documents it was chosen on, nats", "neither",
        "eval_result_metrics.latents.train_loss", short="chosen on",
    ),
    Metric("tasks", "tasks", "neither", "eval_result_metrics.latents.tasks"),
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings, and the versions of the labelled documents. UsageError for datasets that are not to be had here."""
    from eval_runners.data.documents import document_versions

    if not config.ridge > 0:
        raise UsageError(f"--ridge must be positive, not {config.ridge:g}")
    return config, document_versions(NAME, config.dataset_names, config)


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Means over tasks, and a row per task."""
    from eval_runners.data.documents import DocumentActivations, one_against_others
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.cache import evict_unused
    from eval_runners.store.envelope import make_output
    from sae_variants.common.console import progress
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    encoders = {"latents": sae.encode, "residual": lambda x: x}
    rows, folders = [], []
    for name in progress(config.dataset_names, "datasets"):
        documents = DocumentActivations(target, model, name, config, device)
        folders.append(documents.folder)
        found = {category: documents.means(encode, device) for category, encode in encoders.items()}
        labels = list(found["latents"][0])
        for label in labels if len(labels) > 2 else labels[:1]:  # of two classes one against the other is one task
            row: dict[str, Any] = {"dataset": name, "class": label}
            for category, (train, test) in found.items():
                sides = [one_against_others(part, label, config.seed) for part in (train, test)]
                row |= {f"{category} {what}": value for what, value in best(*sides[0], *sides[1], config.ridge).items()}
            rows.append(row)
    evict_unused(keep=folders)
    values: dict[str, dict[str, Any]] = {}
    for category in CATEGORIES:
        values[category] = {what: fmean(row[f"{category} {what}"] for row in rows) for what in ("loss", "train_loss")}
        values[category]["tasks"] = float(len(rows))
    failures = ["no latent says anything of any task"] if all(row["latents latent"] is None for row in rows) else []
    return Evaluation(make_output(NAME, config, finite_or_none(values), sae, target), {"by_task": rows}, failures)


def best(x_NS: Tensor, y_N: Tensor, test_x_MS: Tensor, test_y_M: Tensor, ridge: float) -> dict[str, Any]:
    """The latent whose probe has the least training loss, that loss, and its loss on the test documents."""
    mean_S, spread_S = x_NS.mean(0), x_NS.std(0, correction=0)
    scale_S = spread_S.clamp(min=1e-12)
    weight_S, bias_S = probes((x_NS - mean_S) / scale_S, y_N, ridge)
    losses_S = cross_entropy((x_NS - mean_S) / scale_S * weight_S + bias_S, y_N)
    latent = int(losses_S.argmin())
    test_logit_M = (test_x_MS[:, latent] - mean_S[latent]) / scale_S[latent] * weight_S[latent] + bias_S[latent]
    return {
        "latent": latent if spread_S[latent] > 0 else None,
        "train_loss": losses_S[latent].item(),
        "loss": cross_entropy(test_logit_M[:, None], test_y_M).item(),
    }


def probes(x_NS: Tensor, y_N: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights and biases [S] of a logistic probe on each column alone, least loss + ridge / 2 · weight²."""
    import torch

    weight_S, bias_S = torch.zeros(2, x_NS.shape[1], dtype=x_NS.dtype, device=x_NS.device)
    for _ in range(STEPS):
        p_NS = (x_NS * weight_S + bias_S).sigmoid()
        off_NS = p_NS - y_N[:, None]
        grad = torch.stack([(off_NS * x_NS).mean(0) + ridge * weight_S, off_NS.mean(0)])
        curve_NS = p_NS * (1 - p_NS)
        ww = (curve_NS * x_NS.square()).mean(0) + ridge
        wb, bb = (curve_NS * x_NS).mean(0), curve_NS.mean(0) + 1e-9
        determinant = (ww * bb - wb.square()).clamp(min=1e-12)
        step = torch.stack([bb * grad[0] - wb * grad[1], ww * grad[1] - wb * grad[0]]) / determinant
        step = step.clamp(-2, 2)  # far from the end the curvature is too small
        weight_S, bias_S = weight_S - step[0], bias_S - step[1]
        if step.abs().max() < 1e-6:
            break
    return weight_S, bias_S


def cross_entropy(logits_NS: Tensor, y_N: Tensor) -> Tensor:
    """Mean over documents, nats [S]."""
    from torch.nn.functional import softplus

    return (softplus(logits_NS) - y_N[:, None] * logits_NS).mean(0)


def details(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per task."""
    return result["eval_result_unstructured"]["by_task"]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
