"""Is there one latent for each class of labelled documents?

Each class of labelled datasets, against the other classes, is a binary task. A logistic probe is fitted on the mean
activation of each latent over a document, by Newton's method on training documents. The probe with the smallest
training loss is chosen; its cross-entropy on test documents, in nats, is averaged over tasks. It is ln 2 where no
latent is informative. The baseline is a probe on a channel of the residual stream instead of a latent.

Source: Gao et al., arXiv 2406.04093, section 4.2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of the probes on single latents."""

    dataset_names: tuple[str, ...] = (
        "sandbox/occupation",
        "sandbox/ag_news",
        "sandbox/code",
        "sandbox/it_ticket",
        "sandbox/yelp_sentiment",
    )
    """Labelled datasets, separated by commas."""
    train_documents: int = 200
    """Documents that a task's probes are fitted on; half of them belong to the class."""
    test_documents: int = 100
    """Documents that the chosen probe is tested on; half of them belong to the class."""
    context_size: int = 128
    """Tokens of a document that are read, BOS included."""
    ridge: float = 1e-3
    """L2 penalty on the weight of a latent of unit variance; it keeps the weight finite on separable documents."""
    seed: int = 0
    """Seed of the choice of documents."""


METRICS = (
    Metric(
        "latents",
        "loss",
        "test loss of the best latent's probe, nats",
        "lower",
        short="probe loss",
        references=(("residual stream", "residual.loss"),),
    ),
    Metric("latents", "train_loss", "training loss of the best latent's probe, nats", "neither", short="training loss"),
    Metric("latents", "tasks", "tasks", "neither"),
)


class ProbeLoss(Evaluator[Settings]):
    """Cross-entropy of the best probe on a single latent."""

    settings_class = Settings
    metrics = METRICS
    detail = "task"

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse datasets that are not available, and return the versions of the labelled documents."""
        from eval_runners.data.documents import document_versions

        if not settings.ridge > 0:
            raise UsageError(f"--ridge must be positive, not {settings.ridge:g}")
        return settings, document_versions(self.name, settings.dataset_names, settings)

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Average the loss of the best probe over the tasks."""
        from eval_runners.data.documents import DocumentActivations, one_against_others
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.single_latent_probe import best_probe
        from eval_runners.store.cache import evict_unused
        from sae_variants.common.console import progress

        require_finite_weights(sae)
        encoders = {"latents": sae.encode, "residual": lambda x: x}
        rows, folders = [], []
        for name in progress(settings.dataset_names, "datasets"):
            documents = DocumentActivations(target, context.model, name, settings, context.device)
            folders.append(documents.folder)
            means = {category: documents.means(encode, context.device) for category, encode in encoders.items()}
            labels = list(means["latents"][0])
            for label in labels if len(labels) > 2 else labels[:1]:  # with two classes, both tasks are the same
                row: dict[str, Any] = {"dataset": name, "class": label}
                for category, parts in means.items():
                    train, test = (one_against_others(part, label, settings.seed) for part in parts)
                    probe = best_probe(*train, *test, settings.ridge)
                    row |= {f"{category} {field}": value for field, value in asdict(probe).items()}
                rows.append(row)
        evict_unused(keep=folders)
        values = {
            "latents.loss": fmean(row["latents loss"] for row in rows),
            "latents.train_loss": fmean(row["latents train_loss"] for row in rows),
            "latents.tasks": float(len(rows)),
            "residual.loss": fmean(row["residual loss"] for row in rows),
        }
        silent = all(row["latents latent"] is None for row in rows)
        return Evaluation(values, {"by_task": rows}, ["no latent is informative about any task"] if silent else [])

    def detail_rows(self, result: Result) -> list[dict[str, Any]]:
        """One row per task."""
        return result[UNSTRUCTURED]["by_task"]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
