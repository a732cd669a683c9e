"""Do slow latents know what a document is about, and fast latents which token it is?

- Topic: each class of labelled datasets is separated from the other classes by a logistic probe on the means of
  latents over a document's tokens.
- Token: each kind of token, such as punctuation, is separated from the other tokens of held-out text by a logistic
  probe on the latents at the token; and tokens inside code are separated from those of the labelled documents.

A probe reads the k latents, of one group, whose means differ most between the two sides. Groups are all latents and,
where the SAE's training separates them, slow and fast latents. Accuracies are means over classes, on balanced test
sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from eval_runners.measures.semantic_tasks import ProbeTask
    from sae_variants.language_model.target import Target

GROUPS = ("all", "slow", "fast")
QUESTIONS = ("topic", "token")
KS = (1, 5, 20)


@dataclass(frozen=True)
class Settings:
    """Settings of the topic and token probes."""

    dataset_names: tuple[str, ...] = ("sandbox/ag_news", "sandbox/it_ticket", "sandbox/occupation", "sandbox/term_set1")
    """Labelled datasets of the topic probes, separated by commas."""
    code: str = "sandbox/code"
    """Labelled dataset whose tokens count as inside code."""
    train_documents: int = 200
    """Documents that a topic probe is fitted on, half of them of its class."""
    test_documents: int = 100
    """Documents that a topic probe is tested on, half of them of its class."""
    n_contexts: int = 128
    """Held-out contexts whose tokens are probed."""
    context_size: int = 128
    """Largest number of tokens read of a document; tokens in a held-out context, BOS included."""
    tokens_per_kind: int = 2000
    """Largest number of tokens on each side of a token probe; a quarter of them test it."""
    seed: int = 0
    """Seed of the choice of documents and tokens."""


class Semantics(Evaluator[Settings]):
    """Accuracy of probes for topics and kinds of tokens."""

    settings_class = Settings
    metrics = tuple(
        Metric(
            group,
            f"{question}_{k}",
            f"{group}: {question} accuracy, k = {k}",
            "higher",
            short=f"{group}: {question}, k = {k}" if group != "all" else "",
            column=f"{group}.{question}_{k}",
        )
        for group in GROUPS
        for question in QUESTIONS
        for k in KS
    )
    detail = "class"

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse datasets that are not part of this package, and too few tokens; add the documents' versions."""
        from eval_runners.data.documents import document_versions
        from eval_runners.measures.semantic_tasks import FEWEST_TOKENS

        if settings.tokens_per_kind < FEWEST_TOKENS:
            raise UsageError(f"--tokens-per-kind must be at least {FEWEST_TOKENS}, not {settings.tokens_per_kind}")
        return settings, document_versions(self.name, (*settings.dataset_names, settings.code), settings)

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Fit one probe per class, group and k, and average the accuracies over classes."""
        from eval_runners.measures.checks import require_finite_weights, why_at_chance
        from sae_variants.registry.build import latent_groups

        require_finite_weights(sae)
        groups = {"all": slice(None), **latent_groups(sae)}
        rows: list[dict[str, Any]] = []
        for task in _probe_tasks(sae, target, settings, context):
            row = {"what": task.question, "dataset": task.dataset, "class": task.label}
            accuracies = {f"{group} {k}": task.accuracy(part, k) for group, part in groups.items() for k in KS}
            rows.append(row | accuracies)
        values = {
            f"{group}.{question}_{k}": _mean_accuracy(rows, question, f"{group} {k}")
            for group in groups
            for question in QUESTIONS
            for k in KS
        }
        accuracies_of_all = [value for name, value in values.items() if name.startswith("all.")]
        return Evaluation(values, {"by_class": rows}, why_at_chance(accuracies_of_all))

    def detail_rows(self, result: Result) -> list[dict[str, Any]]:
        """One row per class."""
        return result[UNSTRUCTURED]["by_class"]


def _probe_tasks(sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Iterator[ProbeTask]:
    """All topics, kinds of tokens, and code."""
    from eval_runners.data.documents import DocumentActivations
    from eval_runners.measures.semantic_tasks import code_task, token_kind_tasks, topic_tasks
    from eval_runners.store.cache import evict_unused

    topics, code = (
        {name: DocumentActivations(target, context.model, name, settings, context.device) for name in names}
        for names in (settings.dataset_names, (settings.code,))
    )
    evict_unused(keep=[documents.folder for documents in (*topics.values(), *code.values())])
    yield from topic_tasks(sae, topics, settings.seed)
    yield from token_kind_tasks(
        sae,
        target,
        context.model,
        settings.n_contexts,
        settings.context_size,
        settings.tokens_per_kind,
        settings.seed,
    )
    sizes = [
        (settings.train_documents // 2, settings.tokens_per_kind * 3 // 4),
        (settings.test_documents // 2, settings.tokens_per_kind // 4),
    ]
    yield code_task(sae, settings.code, code[settings.code], list(topics.values()), sizes, settings.seed)


def _mean_accuracy(rows: list[dict[str, Any]], question: str, column: str) -> float | None:
    """Mean of a column over the classes of a question; None if there are none."""
    accuracies = [row[column] for row in rows if row["what"] == question]
    return fmean(accuracies) if accuracies else None


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
