"""SAEBench's sparse probing, unchanged, and F1 of the same probes: do single latents encode classes of documents?

For every class of every dataset a logistic probe is fitted that separates it from the other classes, on the mean of a
document's activations: on all channels of the residual stream and on the k channels that differ most between the two
sides ("LLM"), on all latents and on the k latents that differ most ("SAE"). SAEBench reports accuracy. F1 (of the
class, at the probe's threshold) is taken from the same fitted probes and averaged over all tasks.

Source: Karvonen et al., SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import (
    RESULT_METRICS,
    UNSTRUCTURED,
    Context,
    Curve,
    Evaluation,
    Evaluator,
    Metric,
    Result,
)
from eval_runners.saebench.shared import KS, check_ks, layer_of
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target

WHY_CARE: dict[int | None, str] = {
    1: "seeds of one SAE differ as much as SAEs do (arXiv 2605.18229; results/reliability.md)",
    5: "most SAEs are not told from one that was never trained (results/reliability.md)",
}
"""Number of latents -> reason for its trust label."""
SHOWN_KS = (1, 5)
"""Numbers of latents that have columns on the leaderboard."""
PROTOCOL = "activations of all datasets collected first, from the seed each; every SAE scored on them (warm)"


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's sparse probing."""

    tasks: str | None = None
    """A .csv, .jsonl or .parquet file with columns text and label to probe instead, each label against the others."""
    dataset_names: tuple[str, ...] = (
        "LabHC/bias_in_bios_class_set1",
        "LabHC/bias_in_bios_class_set2",
        "LabHC/bias_in_bios_class_set3",
        "canrager/amazon_reviews_mcauley_1and5",
        "canrager/amazon_reviews_mcauley_1and5_sentiment",
        "codeparrot/github-code",
        "fancyzhx/ag_news",
        "Helsinki-NLP/europarl",
    )
    """Datasets, separated by commas: those of SAEBench, or names that begin with sandbox/."""
    k_values: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Numbers of latents, or of channels, that a probe may use."""
    probe_train_set_size: int | None = None
    """Documents that a probe is fitted on, half of them of its class; the default is 4000, or what the data allow."""
    probe_test_set_size: int | None = None
    """Documents that a probe is tested on, half of them of its class; the default is 1000, or what the data allow."""
    context_length: int = 128
    """Tokens that are read from the beginning of a document."""
    llm_batch_size: int = 32
    """Documents in a batch of the language model."""
    sae_batch_size: int = 125
    """Documents in a batch of the SAE."""
    random_seed: int = 42
    """Seed of the sampled documents, and of the share of each other class in a task."""


def _metrics() -> Iterator[Metric]:
    for k in (None, *KS):
        part, which = ("", "all") if k is None else (f"top_{k}_", f"k = {k}")
        for representation, shown in (("sae", "SAE"), ("llm", "LLM")):
            for score, title in (("accuracy", "accuracy"), ("f1", "F1")):
                is_sae, is_f1 = representation == "sae", score == "f1"
                category = "f1" if is_f1 else representation
                reference = f"{'f1' if is_f1 else 'llm'}.llm_{part}test_{score}"
                yield Metric(
                    category,
                    f"{representation}_{part}test_{score}",
                    f"{shown} {title}, {which}",
                    "higher" if is_sae else "neither",
                    short=f"{title}, {which}" if is_sae and k in SHOWN_KS else "",
                    references=(("residual stream", reference),) if is_sae else (),
                    curve=Curve(f"{title} of probes", "latents that a probe may use", k) if is_sae and k else None,
                    section=UNSTRUCTURED if is_f1 else RESULT_METRICS,
                    trust="with care" if is_sae and k in WHY_CARE else "",
                    why_trust=WHY_CARE.get(k, "") if is_sae else "",
                )


METRICS = tuple(_metrics())


class SparseProbing(Evaluator[Settings]):
    """SAEBench's sparse probing."""

    settings_class = Settings
    metrics = METRICS
    detail = "task"

    def host_output_class(self) -> type:
        """SAEBench's class of sparse probing results."""
        from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput

        return SparseProbingEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Register the file of tasks, settle the sizes of the probes' sets, and find the version of every dataset."""
        from eval_runners.data.labelled import dataset_version, largest_set_sizes

        layer_of(target.hook_name)
        check_ks(settings.k_values, "--k-values")
        settings = _with_task_file(settings, target)
        settings = replace(
            settings,
            dataset_names=tuple(dict.fromkeys(settings.dataset_names)),
            k_values=tuple(dict.fromkeys(settings.k_values)),
        )
        train, test = largest_set_sizes(settings.dataset_names)
        train, test = settings.probe_train_set_size or train, settings.probe_test_set_size or test
        settings = replace(settings, probe_train_set_size=train, probe_test_set_size=test)
        _print_sizes(settings, target)
        seed = settings.random_seed
        return settings, {name: dataset_version(name, train, test, seed) for name in settings.dataset_names}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's sparse probing of one SAE, and add F1 of all its probes and the verdict."""
        from eval_runners.measures.checks import require_finite_weights, why_at_chance
        from eval_runners.saebench.sparse_probing import score_sparse_probing

        require_finite_weights(sae)
        for dimension, width in (("d_sae", sae.cfg.d_sae), ("d_in", sae.cfg.d_in)):
            if max(settings.k_values) > width:
                raise UsageError(f"--k-values asks for {max(settings.k_values)} of {dimension} = {width}")
        if settings.context_length > context.model.cfg.n_ctx:
            raise UsageError(
                f"--context-length {settings.context_length} exceeds the model's {context.model.cfg.n_ctx} positions"
            )
        host_settings = asdict(settings)
        del host_settings["tasks"]
        output, f1_by_dataset, revisions = score_sparse_probing(sae, target, host_settings, context)
        names = list(next(iter(f1_by_dataset.values())))
        f1 = {
            name: fmean(value for scores in f1_by_dataset.values() for value in scores[name].values()) for name in names
        }
        unstructured = {
            "f1": f1,
            "f1_by_task": f1_by_dataset,
            "tasks": sum(len(scores[names[0]]) for scores in f1_by_dataset.values()),
            "protocol": PROTOCOL,
            "dataset_revisions": revisions,
        }
        accuracies = [
            accuracy
            for dataset in output[UNSTRUCTURED].values()
            for name, scores in dataset.items()
            if name.startswith("sae_")
            for accuracy in scores.values()
        ]
        return Evaluation(unstructured=unstructured, failures=why_at_chance(accuracies), host_output=output)

    def untrained_reasons(self, result: Result) -> list[str]:
        """All probes on latents are at chance."""
        from eval_runners.measures.checks import why_at_chance

        scores = (result[RESULT_METRICS] or {}).get("sae") or {}
        accuracies = [value for name, value in scores.items() if name.startswith("sae_top_") and value is not None]
        return why_at_chance(accuracies) if accuracies else []

    def detail_rows(self, result: Result) -> Iterator[dict[str, Any]]:
        """One row per task: accuracy and F1 at every k."""
        unstructured = result[UNSTRUCTURED]
        for dataset, f1 in unstructured["f1_by_task"].items():
            accuracy = unstructured[f"{dataset}_results"]
            for label in f1["sae_test_f1"]:
                row: dict[str, Any] = {"dataset": dataset, "class": label}
                for k in ("all", *result["eval_config"]["k_values"]):
                    for representation, shown in (("llm", "LLM"), ("sae", "SAE")):
                        name = f"{representation}_test" if k == "all" else f"{representation}_top_{k}_test"
                        row[f"{shown} {k}"] = accuracy[f"{name}_accuracy"][label]
                        row[f"{shown} F1 {k}"] = f1[f"{name}_f1"][label]
                yield row


def _target_settings(target: Target) -> dict[str, Any]:
    return target.evaluations.get("sparse_probing", {})


def _with_task_file(settings: Settings, target: Target) -> Settings:
    """The settings with the user's file of tasks, if there is one, as their only dataset."""
    from eval_runners.data.labelled import register_task_file

    if settings.tasks is None:
        return settings
    recipe = _target_settings(target)
    if settings.dataset_names not in (Settings.dataset_names, tuple(recipe.get("dataset_names", ()))):
        raise UsageError("--tasks and --dataset-names both name what to probe: give either of them")
    settings = replace(settings, tasks=None, dataset_names=(register_task_file(settings.tasks),))
    # the target's sizes are for the target's datasets, so they do not hold for the user's file
    if settings.probe_train_set_size == recipe.get("probe_train_set_size"):
        settings = replace(settings, probe_train_set_size=None)
    if settings.probe_test_set_size == recipe.get("probe_test_set_size"):
        settings = replace(settings, probe_test_set_size=None)
    return settings


def _print_sizes(settings: Settings, target: Target) -> None:
    """Print how many distinct documents each class of the user's datasets has."""
    from eval_runners.data.labelled import distinct_classes, is_local_dataset

    for name in filter(is_local_dataset, settings.dataset_names):
        if name not in _target_settings(target).get("dataset_names", ()):
            distinct = ", ".join(f"{label} {len(texts)}" for label, texts in distinct_classes(name).items())
            train, test = settings.probe_train_set_size, settings.probe_test_set_size
            print(f"{name}: distinct documents {distinct}; a probe is fitted on {train} and tested on {test}")


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
