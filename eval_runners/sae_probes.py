"""sae_probes: SAEBench's probing on the 113 labelled datasets of the sae-probes package, unchanged; needs no network.

For every dataset a logistic probe tells its two classes apart from the activations at a document's last token: of the
whole residual stream ("LLM"), and of the k latents that differ most between the classes ("SAE"). The texts are in the
package. Its F1 is the mean over both classes, weighted by their size; the F1 of `sparse_probing` is of one class.
Documents that the package holds twice may lie on both sides of its split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from eval_runners.contract.contract import Evaluation, Metric
from eval_runners.saebench.shared import KS
from sae_variants.common.errors import UsageError, check_name

EVAL_TYPE = "sparse_probing_sae_probes"


@dataclass(frozen=True)
class EvalConfig:
    all: bool = False
    """All 113 datasets, where the target names a part of them."""
    dataset_names: tuple[str, ...] = ()
    """Datasets, parted by commas, as in 158_code_C; all 113 if not given."""
    ks: tuple[int, ...] = (1, 2, 5)
    """Numbers of latents that a probe may use."""
    reg_type: str = "l1"
    """Penalty of the probes: l1 or l2."""
    binarize: bool = False
    """Probe whether latents fire rather than how much."""
    random_seed: int = 42
    """Seed of the choice of documents."""


def _metrics() -> Iterator[Metric]:
    scores = (("accuracy", "accuracy"), ("auc", "AUC"), ("f1", "F1"))
    for k in KS:
        for name, title in scores:
            key = f"sae_top_{k}_test_{name}"
            yield Metric(key, f"SAE {title}, k = {k}", "higher", f"eval_result_metrics.sae.{key}")
    for name, title in scores:
        yield Metric(f"llm_test_{name}", f"LLM {title}, all", "neither", f"eval_result_metrics.llm.llm_test_{name}")


METRICS = tuple(_metrics())


def output_class() -> type:
    from sae_bench.evals.sparse_probing_sae_probes.eval_output import SparseProbingSaeProbesEvalOutput

    return SparseProbingSaeProbesEvalOutput


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings with every dataset named, and the datasets' versions. UsageError for settings that cannot be."""
    from eval_runners.data.labelled import probe_dataset_names, probe_dataset_version
    from eval_runners.saebench.shared import layer_of

    layer_of(target.hook_name)
    known = probe_dataset_names()
    names = (
        known
        if config.all or not config.dataset_names
        else [check_name("dataset", n, known) for n in config.dataset_names]
    )
    for k in config.ks:
        if k not in KS:
            raise UsageError(f"--ks may hold {', '.join(map(str, KS))}, not {k}")
    if config.reg_type not in ("l1", "l2"):
        raise UsageError(f"--reg-type must be l1 or l2, not {config.reg_type!r}")
    versions = {name: probe_dataset_version(name) for name in names}
    return replace(config, all=False, dataset_names=tuple(dict.fromkeys(names))), versions


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """SAEBench's output of one SAE, and what speaks against the SAE being trained."""
    from eval_runners.measures.checks import require_finite_weights, why_at_chance
    from eval_runners.saebench.sae_probes import score_sae_probes

    require_finite_weights(sae)
    if max(config.ks) > sae.cfg.d_sae:
        raise UsageError(f"--ks asks for {max(config.ks)} of d_sae = {sae.cfg.d_sae}")
    settings = asdict(config)
    del settings["all"]
    output = score_sae_probes(sae, model, target, settings, device)
    accuracies = [
        value
        for detail in output["eval_result_details"]
        for name, value in detail.items()
        if name.startswith("sae_top") and name.endswith("accuracy")
    ]
    return Evaluation(output, {"tasks": len(config.dataset_names)}, why_at_chance(accuracies))


def details(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per dataset: accuracy, AUC and F1 at every k, and the language model's."""
    for detail in result["eval_result_details"]:
        row: dict[str, Any] = {"dataset": detail["dataset_name"]}
        for k in result["eval_config"]["ks"]:
            for name in ("accuracy", "auc", "f1"):
                row[f"SAE {name} {k}"] = detail[f"sae_top_{k}_test_{name}"]
        yield row | {f"LLM {name}": detail[f"llm_test_{name}"] for name in ("accuracy", "auc", "f1")}


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
