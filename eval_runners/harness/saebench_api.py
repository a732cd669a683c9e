"""SAEBench's entry point `run_eval` for every evaluator, so that scripts written for SAEBench can call ours.

    run_eval = make_run_eval("n2g", "sandbox")
    run_eval({"n_latents": 20}, [("my_sae", sae)], "cpu", "eval_results/n2g")

writes `eval_results/n2g/my_sae_custom_sae_eval_results.json`, as SAEBench names it. A target, by name or as an object,
names the language model, hook and text, which SAEBench reads from its configs and the SAE.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eval_runners.contract.contract import Context, Result
from eval_runners.harness.fit import check_context, check_fits
from eval_runners.harness.score import evaluate_sae, prepare_scoring
from eval_runners.harness.target_model import model_loader
from eval_runners.store.result import write_result
from sae_variants.language_model.target import Target, load_target

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from sae_lens import SAE

IN_MEMORY = "custom_sae"
"""SAEBench's id of an SAE that is given as an object."""


class RunEval(Protocol):
    """SAEBench's signature of `run_eval`."""

    def __call__(
        self,
        config: DataclassInstance | Mapping[str, Any],
        selected_saes: Sequence[tuple[str, SAE[Any] | str]],
        device: str,
        output_path: str,
        force_rerun: bool = False,
    ) -> dict[str, Result]:
        """Evaluate SAEs and write a result for each.

        Args:
            config: the evaluator's `Settings`, or a mapping with some of its fields; the target sets the others.
            selected_saes: (name, SAE), or (release, id) of an SAE that SAELens knows.
            device: such as "cpu" or "cuda".
            output_path: folder of the results, created if need be.
            force_rerun: evaluate again although there is a result.

        Returns:
            `<name>_<id>` -> result, of the SAEs that were evaluated now.

        Raises:
            UsageError: settings or an SAE that do not fit.
            Untrained: an SAE for which there can be no result.
        """
        ...


def make_run_eval(name: str, target: str | Target) -> RunEval:
    """Make SAEBench's entry point of one evaluator.

    Args:
        name: the evaluator's.
        target: the language model, hook and text, by name or as an object.
    """
    resolved = load_target(target) if isinstance(target, str) else target

    def run_eval(
        config: DataclassInstance | Mapping[str, Any],
        selected_saes: Sequence[tuple[str, SAE[Any] | str]],
        device: str,
        output_path: str,
        force_rerun: bool = False,
    ) -> dict[str, Result]:
        given = config if isinstance(config, Mapping) else {f.name: getattr(config, f.name) for f in fields(config)}
        scoring = prepare_scoring(name, resolved, given, Path(output_path), device, ["python", *sys.argv])
        load_model = model_loader(resolved, device)
        results: dict[str, Result] = {}
        for release, sae_or_id in selected_saes:
            sae_id = sae_or_id if isinstance(sae_or_id, str) else IN_MEMORY
            path = result_path(output_path, release, sae_id)
            if path.exists() and not force_rerun:
                print(f"Skipping {release}_{sae_id} as results already exist")
                continue
            model, sae = load_model(), _inference_sae(release, sae_or_id, device)
            check_fits(sae, release, resolved, model)
            if (context_size := getattr(scoring.settings, "context_size", None)) is not None:
                check_context(context_size, resolved, model)
            result, files = evaluate_sae(scoring, sae, Context(model, device))
            result |= {"sae_lens_release_id": release, "sae_lens_id": sae_id}
            write_result(path, result, files)
            results[f"{release}_{sae_id}"] = result
        return results

    return run_eval


def result_path(output_path: str, release: str, sae_id: str) -> Path:
    """The file that SAEBench, too, writes the result of an SAE to."""
    return Path(output_path) / f"{release}_{sae_id}_eval_results.json".replace("/", "_")


def _inference_sae(release: str, sae_or_id: SAE[Any] | str, device: str) -> SAE[Any]:
    """An SAE with decoder rows of unit norm. The caller's object stays as it is."""
    from sae_lens import SAE

    if isinstance(sae_or_id, str):
        sae = SAE.from_pretrained(release, sae_or_id, device=device)
    else:
        sae = copy.deepcopy(sae_or_id).to(device)
    with contextlib.suppress(NotImplementedError):
        sae.fold_W_dec_norm()
    return sae
