"""sparse_probing: SAEBench's sparse probing, unchanged, and F1 of the same probes: do single latents know the classes?

For every class of every dataset a logistic probe is fitted that tells it from the other classes, on the mean of a
document's activations: on all channels of the residual stream and on the k of them that differ most between the two
sides ("LLM"), on all latents and on the k that differ most ("SAE"). SAEBench reports accuracy; F1 (of the class, at the
probe's own threshold) is taken from the same fitted probes and averaged over all tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from eval_runners.contract.contract import Evaluation, Metric
from eval_runners.saebench.shared import KS
from sae_variants.common.errors import UsageError

ON_THE_BOARD = (1, 5)
PROTOCOL = "activations of all datasets collected first, from the seed each; every SAE scored on them (warm)"


@dataclass(frozen=True)
class EvalConfig:
    tasks: str | None = None
    """A .csv, .jsonl or .parquet file with columns text and label, to probe instead: each label against the others."""
    dataset_names: tuple[str, ...] = (
        "LabHC/bias_in_bios_class_set1", "LabHC/bias_in_bios_class_set2", "LabHC/bias_in_bios_class_set3",
        "canrager/amazon_reviews_mcauley_1and5", "canrager/amazon_reviews_mcauley_1and5_sentiment",
        "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl",
    )  # fmt: skip
    """Datasets, parted by commas: SAEBench's, or sandbox/... ones."""
    k_values: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Numbers of latents, or channels, that a probe may use."""
    probe_train_set_size: int | None = None
    """Documents that a probe is fitted on, half of them of its class; if not given 4000, or what the data allow."""
    probe_test_set_size: int | None = None
    """Documents that it is tested on, half of them of its class; if not given 1000, or what the data allow."""
    context_length: int = 128
    """Tokens of a document that are read, from its beginning."""
    llm_batch_size: int = 32
    """Documents in a batch of the language model."""
    sae_batch_size: int = 125
    """Documents in a batch of the SAE."""
    random_seed: int = 42
    """Seed of the choice of documents and of the other classes' share in a task."""


def _metrics() -> Iterator[Metric]:
    for k in (None, *KS):
        part, title = ("", "all") if k is None else (f"top_{k}_", f"k = {k}")
        for who, shown in (("sae", "SAE"), ("llm", "LLM")):
            name = f"{who}_{part}test"
            better = "higher" if who == "sae" else "neither"
            for score, where in (("accuracy", f"eval_result_metrics.{who}"), ("f1", "eval_result_unstructured.f1")):
                path, word = f"{where}.{name}_{score}", "F1" if score == "f1" else score
                is_sae = who == "sae"
                yield Metric(
                    f"{name}_{score}",
                    f"{shown} {word}, {title}",
                    better,
                    path,
                    short=f"{word}, {title}" if is_sae and k in ON_THE_BOARD else "",
                    references=(("residual stream", path.replace("sae", "llm")),) if is_sae else (),
                    curve=(f"{word} of probes", "latents that a probe may use", k) if is_sae and k else None,
                )


METRICS = tuple(_metrics())


def output_class() -> type:
    from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput

    return SparseProbingEvalOutput


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings as they will be used, and the version of every dataset. UsageError for those that cannot be."""
    from eval_runners.data.labelled import (
        dataset_version,
        distinct_classes,
        is_local_dataset,
        largest_set_sizes,
        register_task_file,
    )
    from eval_runners.saebench.shared import layer_of

    layer_of(target.hook_name)
    for k in config.k_values:
        if k not in KS:
            raise UsageError(f"--k-values may hold {', '.join(map(str, KS))}, not {k}")
    if config.tasks is not None:
        own = target.evaluations.get("sparse_probing", {})
        if config.dataset_names not in (EvalConfig.dataset_names, tuple(own.get("dataset_names", ()))):
            raise UsageError("--tasks and --dataset-names both say what to probe: give one of them")
        config = replace(config, tasks=None, dataset_names=(register_task_file(config.tasks),))
        for size in ("probe_train_set_size", "probe_test_set_size"):
            if getattr(config, size) == own.get(size):
                config = replace(config, **{size: None})  # the target's sizes are for its own datasets
    config = replace(
        config,
        dataset_names=tuple(dict.fromkeys(config.dataset_names)),
        k_values=tuple(dict.fromkeys(config.k_values)),
    )
    train, test = largest_set_sizes(config.dataset_names)
    train, test = config.probe_train_set_size or train, config.probe_test_set_size or test
    config = replace(config, probe_train_set_size=train, probe_test_set_size=test)
    for name in filter(is_local_dataset, config.dataset_names):
        if name not in target.evaluations.get("sparse_probing", {}).get("dataset_names", ()):
            distinct = ", ".join(f"{label} {len(texts)}" for label, texts in distinct_classes(name).items())
            print(f"{name}: distinct documents {distinct}; a probe is fitted on {train} and tested on {test}")
    return config, {name: dataset_version(name, train, test, config.random_seed) for name in config.dataset_names}


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """SAEBench's output of one SAE, F1 of all its probes, and what speaks against the SAE being trained."""
    from eval_runners.measures.checks import require_finite_weights, why_at_chance
    from eval_runners.saebench.sparse_probing import score_sparse_probing

    require_finite_weights(sae)
    for what, width in (("d_sae", sae.cfg.d_sae), ("d_in", sae.cfg.d_in)):
        if max(config.k_values) > width:
            raise UsageError(f"--k-values asks for {max(config.k_values)} of {what} = {width}")
    if config.context_length > model.cfg.n_ctx:
        raise UsageError(f"--context-length {config.context_length} exceeds the model's {model.cfg.n_ctx} positions")
    settings = asdict(config)
    del settings["tasks"]
    output, by_task = score_sparse_probing(sae, model, target, settings, device)
    names = list(next(iter(by_task.values())))
    f1 = {name: fmean(score for scores in by_task.values() for score in scores[name].values()) for name in names}
    ours = {
        "f1": f1,
        "f1_by_task": by_task,
        "tasks": sum(len(scores[names[0]]) for scores in by_task.values()),
        "protocol": PROTOCOL,
    }
    probes = [
        accuracy
        for dataset in output["eval_result_unstructured"].values()
        for name, scores in dataset.items()
        if name.startswith("sae_")
        for accuracy in scores.values()
    ]
    return Evaluation(output, ours, why_at_chance(probes))


def untrained(result: dict[str, Any]) -> list[str]:
    """What in a sparse probing result says that the SAE is not trained."""
    from eval_runners.measures.checks import why_at_chance

    scores = (result["eval_result_metrics"] or {}).get("sae") or {}
    accuracies = [value for name, value in scores.items() if name.startswith("sae_top_") and value is not None]
    return why_at_chance(accuracies) if accuracies else []


def details(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per task: accuracy and F1 at every k."""
    ours = result["eval_result_unstructured"]
    for dataset, f1 in ours["f1_by_task"].items():
        accuracy = ours[f"{dataset}_results"]
        for label in f1["sae_test_f1"]:
            row: dict[str, Any] = {"dataset": dataset, "class": label}
            for k in ("all", *result["eval_config"]["k_values"]):
                for who, shown in (("llm", "LLM"), ("sae", "SAE")):
                    name = f"{who}_test" if k == "all" else f"{who}_top_{k}_test"
                    row[f"{shown} {k}"] = accuracy[f"{name}_accuracy"][label]
                    row[f"{shown} F1 {k}"] = f1[f"{name}_f1"][label]
            yield row


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
