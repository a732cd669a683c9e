"""SAEBench's entry points `run_eval` and `run_evals` for every evaluator, so that SAEBench's scripts can call ours.

    run_eval = make_run_eval("n2g", "sandbox")
    run_eval({"n_latents": 20}, [("my_sae", sae)], "cpu", "eval_results/n2g")

writes `eval_results/n2g/my_sae_custom_sae_eval_results.json`, as SAEBench names it. A target, by name or as an object,
names the language model, hook and text, which SAEBench reads from its configs and the SAE.

    run_evals("sandbox", [("my_sae", sae)], eval_types=["core", "scr", "n2g"])

replaces `run_evals` of SAEBench's `run_all_evals_custom_saes`, which knows two language models and ends with
"Unsupported model" for any other. It writes to the same folders.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eval_runners.contract.contract import CannotDo, Context, Result
from eval_runners.contract.located import LocatedSAE
from eval_runners.contract.registry import GROUPS, evaluator_names, load_evaluator
from eval_runners.harness.evaluations import prepare_scorings, print_left_out
from eval_runners.harness.fit import check_context, check_fits, check_positions
from eval_runners.harness.host_settings import settings_of
from eval_runners.harness.saved_sae import locate_name
from eval_runners.harness.score import evaluate_sae, prepare_scoring
from eval_runners.harness.target_model import model_loader
from eval_runners.store.read import load_result
from eval_runners.store.result import write_result
from sae_variants.common.errors import UsageError, check_name
from sae_variants.language_model.target import Target, load_target

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from sae_lens import SAE

IN_MEMORY = "custom_sae"
"""SAEBench's id of an SAE that is given as an object."""
HOST_NAMES = {"sae_probes": "sparse_probing_sae_probes"}
"""Evaluator -> SAEBench's name of the evaluation and of its folder, where they differ."""
NO_EFFECT = ("clean_up_activations", "save_activations", "artifacts_path", "save_logs_path")
"""Further arguments of SAEBench's `run_eval`. Here no activations are left behind, so they have no effect."""


class RunEval(Protocol):
    """SAEBench's signature of `run_eval`."""

    def __call__(
        self,
        config: DataclassInstance | Mapping[str, Any],
        selected_saes: Sequence[tuple[str, SAE[Any] | str]],
        device: str,
        output_path: str,
        force_rerun: bool = False,
        *rest: object,
        **options: object,
    ) -> dict[str, Result]:
        """Evaluate SAEs and write a result for each.

        Args:
            config: the evaluator's `Settings`, a mapping with some of its fields, or SAEBench's config of the
                evaluation, of which the fields count that differ from SAEBench's defaults. The target sets the others.
            selected_saes: (name, SAE), (name, folder of an SAE), or (release, id) of an SAE that SAELens knows.
            device: such as "cpu" or "cuda".
            output_path: folder of the results, created if need be.
            force_rerun: evaluate again although there is a result.
            rest: nothing. SAEBench's `autointerp` has a key before `output_path`, which is refused here.
            options: further arguments of SAEBench's `run_eval`, such as `save_activations`, which have no effect.

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
        name: the evaluator's, or SAEBench's of the same evaluation.
        target: the language model, hook and text, by name or as an object.
    """
    resolved = load_target(target) if isinstance(target, str) else target
    evaluation = _our_name(name)

    def run_eval(
        config: DataclassInstance | Mapping[str, Any],
        selected_saes: Sequence[tuple[str, SAE[Any] | str]],
        device: str,
        output_path: str,
        force_rerun: bool = False,
        *rest: object,
        **options: object,
    ) -> dict[str, Result]:
        if rest or not isinstance(force_rerun, bool):
            raise UsageError(
                "run_eval takes config, selected_saes, device, output_path and force_rerun, and no key: "
                "the key of a judge is read from OPENAI_API_KEY"
            )
        for option in options:
            check_name("argument of run_eval", option, NO_EFFECT)
        given = settings_of(load_evaluator(evaluation), resolved, config)
        scoring = prepare_scoring(evaluation, resolved, given, Path(output_path), ["python", *sys.argv])
        check_positions(resolved, scoring.settings)
        for pair in selected_saes:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str) or pair[1] is None:
                raise UsageError(
                    f"selected_saes holds pairs (name, SAE or folder), not {type(pair).__name__}: {pair!r}"
                )
        load_model = model_loader(resolved, device)
        results: dict[str, Result] = {}
        for release, sae_or_id in selected_saes:
            located = locate_name(sae_or_id) if isinstance(sae_or_id, str) and Path(sae_or_id).is_dir() else None
            sae_id = located.label if located else sae_or_id if isinstance(sae_or_id, str) else IN_MEMORY
            path = result_path(output_path, release, sae_id)
            if path.exists() and not force_rerun:
                if (found := load_result(path)["eval_type_id"]) != scoring.evaluator.result_type:
                    raise UsageError(
                        f"{path} holds a result of {found}: give each evaluation an output_path of its own"
                    )
                print(f"Skipping {release}_{sae_id} as results already exist")
                continue
            model, sae = load_model(), _inference_sae(release, sae_or_id, located, device)
            check_fits(sae, release, resolved, model)
            if (context_size := getattr(scoring.settings, "context_size", None)) is not None and not resolved.synthetic:
                check_context(context_size, resolved, model)
            context = Context(model, device, located, model if resolved.synthetic else None)
            result, files = evaluate_sae(scoring, sae, context)
            result |= {"sae_lens_release_id": release, "sae_lens_id": sae_id}
            write_result(path, result, files)
            results[f"{release}_{sae_id}"] = result
        return results

    return run_eval


def run_evals(
    model_name: str | Target,
    selected_saes: Sequence[tuple[str, SAE[Any] | str]],
    llm_batch_size: int | None = None,
    llm_dtype: str = "",
    device: str = "cpu",
    eval_types: Sequence[str] = ("saebench",),
    api_key: str | None = None,
    force_rerun: bool = False,
    save_activations: bool = False,
    settings: Mapping[str, DataclassInstance | Mapping[str, Any]] | None = None,
    output_path: str = "eval_results",
) -> dict[str, dict[str, Result]]:
    """Run several evaluations, as `run_evals` of SAEBench's script `run_all_evals_custom_saes` does.

    Args:
        model_name: a target, by name or as an object.
        selected_saes: as `RunEval` takes them.
        llm_batch_size: contexts in a batch of the language model, where an evaluation has that setting.
        llm_dtype: the target's data type, or empty.
        device: such as "cpu" or "cuda".
        eval_types: evaluators, evaluations by SAEBench's names, or groups. Of a group, what the target does not allow
            is left out, and the reason is printed.
        api_key: None; the key of a judge is read from OPENAI_API_KEY.
        force_rerun: evaluate again although there is a result.
        save_activations: has no effect.
        settings: evaluator -> config, as `RunEval` takes it.
        output_path: folder of the folders of results, one for each evaluation.

    Returns:
        Evaluator -> results as of `RunEval`.

    Raises:
        UsageError: as of `RunEval`; an unknown evaluation or another data type.
    """
    target = load_target(model_name) if isinstance(model_name, str) else model_name
    if api_key is not None:
        raise UsageError(
            "run_evals takes no api_key: set OPENAI_API_KEY, and url and model_name of autointerp's settings"
        )
    if llm_dtype not in ("", target.dtype):
        raise UsageError(f"llm_dtype is {llm_dtype!r}, but the target {target.name} has {target.dtype!r}")
    eval_types = [eval_types] if isinstance(eval_types, str) else eval_types
    names = [_our_name(name) for name in eval_types]
    given = {
        name: settings_of(load_evaluator(name), target, config)
        for name, config in ((_our_name(name), config) for name, config in (settings or {}).items())
    }
    scorings, left_out = prepare_scorings(names, target, given, Path(output_path), ["python", *sys.argv])
    results: dict[str, dict[str, Result]] = {}
    for scoring in scorings:
        name = scoring.evaluator.name
        config = dict(given.get(name, {}))
        if llm_batch_size is not None and hasattr(scoring.settings, "llm_batch_size"):
            config.setdefault("llm_batch_size", llm_batch_size)
        folder = str(Path(output_path) / HOST_NAMES.get(name, name))
        print(f"Running {name}")
        try:
            results[name] = make_run_eval(name, target)(config, selected_saes, device, folder, force_rerun)
        except CannotDo as error:
            if not scoring.is_optional:
                raise
            left_out[name] = str(error)
    print_left_out(left_out)
    return results


def _our_name(name: str) -> str:
    """Return an evaluator or a group by its own name or by SAEBench's.

    Raises:
        UsageError: there is none.
    """
    ours = {host: own for own, host in HOST_NAMES.items()}
    check_name("evaluation", name, [*evaluator_names(), *GROUPS, *ours])
    return ours.get(name, name)


def result_path(output_path: str, release: str, sae_id: str) -> Path:
    """The file that SAEBench, too, writes the result of an SAE to."""
    return Path(output_path) / f"{release}_{sae_id}_eval_results.json".replace("/", "_")


def _inference_sae(release: str, sae_or_id: SAE[Any] | str, located: LocatedSAE | None, device: str) -> SAE[Any]:
    """An SAE with decoder rows of unit norm. The caller's object stays as it is."""
    from sae_lens import SAE

    if located:
        return located.load(device)
    if isinstance(sae_or_id, str):
        try:
            sae = SAE.from_pretrained(release, sae_or_id, device=device)
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"SAELens knows no SAE {sae_or_id!r} of the release {release!r}, and it is no folder"
            ) from error
    else:
        sae = copy.deepcopy(sae_or_id).to(device)
    with contextlib.suppress(NotImplementedError):
        sae.fold_W_dec_norm()
    return sae
