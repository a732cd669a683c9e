"""Scripts written for SAEBench call our evaluations, and SAEBench's graphs read the files that they write."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import fields, replace
from importlib import import_module

import pytest
from conftest import evaluate, identity, tiny
from pydantic import TypeAdapter
from test_alpha_dynamics import write_trace
from test_architecture import ROOT
from test_evaluators import SMALL, make_short, whole
from test_export import graphs  # noqa: F401  a fixture
from test_synthetic import SMALL as SYNTHETIC
from test_synthetic import make_target

from eval_runners.contract.contract import CannotDo
from eval_runners.contract.registry import GROUPS, evaluator_names, load_evaluator
from eval_runners.core import Core
from eval_runners.harness import saebench_api
from eval_runners.harness.host_settings import settings_of
from eval_runners.harness.saebench_api import HOST_NAMES, make_run_eval, run_evals
from eval_runners.store.envelope import output_class
from sae_variants.common.errors import UsageError
from sae_variants.synthetic.model import load_synthetic
from sae_variants.training.plan import make_plan

CONFIGS = {
    "core": "core.eval_config.CoreEvalConfig",
    "sparse_probing": "sparse_probing.eval_config.SparseProbingEvalConfig",
    "sae_probes": "sparse_probing_sae_probes.eval_config.SparseProbingSaeProbesEvalConfig",
    "absorption": "absorption.eval_config.AbsorptionEvalConfig",
    "autointerp": "autointerp.eval_config.AutoInterpEvalConfig",
    "scr": "scr_and_tpp.eval_config.ScrAndTppEvalConfig",
    "tpp": "scr_and_tpp.eval_config.ScrAndTppEvalConfig",
    "meta_structure": "meta_structure.eval_config.MetaStructureEvalConfig",
    "mdl": "mdl.eval_config.MDLEvalConfig",
    "ravel": "ravel.eval_config.RAVELEvalConfig",
    "unlearning": "unlearning.eval_config.UnlearningEvalConfig",
}
"""Evaluator -> SAEBench's config, below `sae_bench.evals`."""
DRAWN = ("absorption", "autointerp", "core", "scr", "sparse_probing", "sae_probes", "tpp")
"""Evaluators whose results SAEBench's graphs read."""


def host_config(name, **values):
    """SAEBench's config of an evaluation."""
    module, _, kind = CONFIGS[name].rpartition(".")
    host = getattr(import_module(f"sae_bench.evals.{module}"), kind)
    known = {f.name for f in fields(host)}
    lists = {field: list(value) if isinstance(value, tuple) else value for field, value in values.items()}
    return host(**{field: value for field, value in lists.items() if field in known})


def untimed(result):
    """Metrics without durations."""
    return {
        (category, name): value
        for category, values in result["eval_result_metrics"].items()
        for name, value in values.items()
        if not name.endswith("_seconds")
    }


@pytest.fixture(params=evaluator_names())
def name(request):
    return request.param


@pytest.fixture
def short(name, target, text_file, tasks_file, tmp_path, monkeypatch):
    """The target, and the settings that make the evaluation short."""
    target, settings = make_short(name, target, text_file, tasks_file, tmp_path, monkeypatch)
    if load_evaluator(name).needs_truth:
        target = make_target(tmp_path, SYNTHETIC)
    return target, settings


@pytest.fixture
def selected(name, short, tmp_path):
    """(name, SAE), or (name, folder) where an evaluation reads what lies beside the weights."""
    sae = whole(name, short[0])
    if name != "alpha_dynamics":
        return "temporal", sae
    sae.save_model(tmp_path / "sae")
    write_trace(tmp_path / "sae")
    return "temporal", str(tmp_path / "sae")


def test_saebench_s_run_eval_gives_the_numbers_of_the_evaluator(
    name, short, selected, model, tmp_path, monkeypatch, request
):
    target, settings = short
    monkeypatch.chdir(tmp_path)
    folder = f"eval_results/{HOST_NAMES.get(name, name)}"
    results = make_run_eval(name, target)(settings, [selected], "cpu", folder, False)
    ((key, result),) = results.items()
    assert key.startswith("temporal_")
    (path,) = (tmp_path / folder).glob("*_eval_results.json")
    assert path.name == f"{key}_eval_results.json"
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(result))
    TypeAdapter(output_class(load_evaluator(name))).validate_python(written)
    located = write_trace(tmp_path) if name == "alpha_dynamics" else None
    truth = load_synthetic(SYNTHETIC, "cpu") if target.synthetic else None
    sae = whole(name, target)
    with contextlib.suppress(NotImplementedError):
        sae.fold_W_dec_norm()
    expected = evaluate(name, sae, target, model, located, prepare=True, truth=truth, **settings)
    assert untimed(result) == untimed(expected.output)
    if name in DRAWN:
        read = request.getfixturevalue("graphs").get_eval_results([f"{folder}/{path.name}"])
        ((drawn),) = read.values()
        numbers = {
            metric.name: value for metric in load_evaluator(name).metrics if (value := expected.values[metric.key])
        }
        assert numbers.items() & drawn.items()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "unlearning"])
def test_a_config_of_saebench_is_taken(name, short, selected, tmp_path):
    target, settings = short
    if name == "core":  # 1 is SAEBench's default
        settings = settings | {"n_eval_sparsity_variance_batches": 2}
    evaluator = load_evaluator(name)
    named = {
        "model_name": target.model_name,
        "llm_dtype": target.dtype,
        "random_seed": 42,
        "perform_scr": name == "scr",
    }
    config = host_config(name, **settings, **named)
    ours = {field: value for field, value in settings.items() if not hasattr(config, field)}
    assert {**settings_of(evaluator, target, config), **ours} == settings
    if name == "scr":
        ((result),) = make_run_eval(name, target)(config, [selected], "cpu", str(tmp_path / "host")).values()
        ((expected),) = make_run_eval(name, target)(settings, [selected], "cpu", str(tmp_path / "ours")).values()
        assert untimed(result) == untimed(expected)


def test_a_model_has_several_names(target):
    named = replace(target, model_name="gpt2")
    for alias in ("gpt2-small", "openai-community/gpt2", "gpt2"):
        assert settings_of(load_evaluator("mdl"), named, host_config("mdl", model_name=alias)) == {}


def test_defaults_of_saebench_are_the_target_s(target):
    assert len(CONFIGS) == len(GROUPS["saebench"])
    for name in CONFIGS:
        perform = {"perform_scr": name == "scr"}
        assert settings_of(load_evaluator(name), target, host_config(name, **perform)) == {}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("core", {"model_name": "pythia-70m-deduped"}, "model_name of CoreEvalConfig is 'pythia-70m-deduped', but the"),
        ("scr", {"llm_dtype": "bfloat16"}, "llm_dtype of ScrAndTppEvalConfig is 'bfloat16', but the target"),
        ("core", {"dataset": "monology/pile"}, "dataset of CoreEvalConfig is 'monology/pile', but the target"),
        ("tpp", {"perform_scr": True}, "perform_scr of ScrAndTppEvalConfig must be False for tpp"),
        ("scr", {"perform_scr": False}, "perform_scr of ScrAndTppEvalConfig must be True for scr"),
        ("scr", {"probe_lr": 0.5}, "unknown field in the ScrAndTppEvalConfig of scr 'probe_lr'"),
        ("mdl", {"k_values": [3]}, "unknown field in the MDLEvalConfig of mdl 'k_values'"),
    ],
)
def test_a_config_of_saebench_that_does_not_fit_is_one_line(name, values, message, target, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_run_eval(name, target)(host_config(name, **values), [], "cpu", str(tmp_path))


def test_a_flag_that_core_always_has_and_folders_of_saebench_change_nothing(target, capsys):
    config = host_config(
        "core", compute_kl=True, verbose=True, context_size=32, exclude_special_tokens_from_reconstruction=True
    )
    given = {"context_size": 32, "exclude_special_tokens_from_reconstruction": True}
    assert settings_of(load_evaluator("core"), target, config) == given
    said = "core takes context_size=32, exclude_special_tokens_from_reconstruction=True from CoreEvalConfig;"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"contxt_size": 32}, "unknown field in the config of core 'contxt_size': did you mean 'context_size'"),
        ({"context_size": "long"}, "context_size in the config of core must be"),
        ({"context_size": 0}, "--context-size must be at least 1, not 0"),
    ],
)
def test_a_mapping_that_does_not_fit_is_one_line(config, message, target, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_run_eval("core", target)(config, [], "cpu", str(tmp_path))


def test_lists_and_arguments_of_saebench_are_taken(target, tmp_path):
    run_eval = make_run_eval("sparse_probing_sae_probes", target)
    settings = {name: list(value) for name, value in SMALL["sae_probes"].items()}
    results = run_eval(settings, [("x", identity(target))], "cpu", str(tmp_path), save_activations=True)
    assert results["x_custom_sae"]["eval_type_id"] == "sparse_probing_sae_probes"
    with pytest.raises(UsageError, match="unknown argument of run_eval 'save_activation'"):
        run_eval(settings, [], "cpu", str(tmp_path), save_activation=True)


def test_a_key_where_saebench_has_it_is_refused_and_not_shown(target, tmp_path):
    run_eval = make_run_eval("autointerp", target)
    for more in (("eval_results",), ("eval_results", False)):
        with pytest.raises(UsageError, match="the key of a judge is read from OPENAI_API_KEY") as refused:
            run_eval({}, [], "cpu", "sk-secret", *more)
        assert "secret" not in str(refused.value)
    with pytest.raises(UsageError, match="takes no api_key: set OPENAI_API_KEY") as refused:
        run_evals(target, [], eval_types=["core"], api_key="sk-secret")
    assert "secret" not in str(refused.value)


def test_a_result_of_another_evaluation_is_not_taken_for_this_one(target, tmp_path):
    saes = [("x", identity(target))]
    make_run_eval("core", target)(SMALL["core"], saes, "cpu", str(tmp_path))
    with pytest.raises(UsageError, match="holds a result of core: give each evaluation an output_path of its own"):
        make_run_eval("downstream_loss", target)(SMALL["downstream_loss"], saes, "cpu", str(tmp_path))


def of_readme() -> str:
    """The README's script for SAEBench's users."""
    (script,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        if "run_evals" in block
    )
    return script


def test_what_the_readme_tells_users_of_saebench_s_script(target, trained, tmp_path, monkeypatch, graphs):  # noqa: F811
    small = replace(target, evaluations={name: SMALL[name] for name in ("core", "scr", "n2g")})
    monkeypatch.setattr(saebench_api, "load_target", {"sandbox": small}.__getitem__)
    monkeypatch.setattr("eval_runners.saebench.scr_and_tpp.LEAST_ACCURACY", 0.0)
    folder = make_plan("temporal", target, tiny("temporal"), trained).folder
    monkeypatch.chdir(tmp_path)
    exec(of_readme().replace('"FOLDER"', repr(str(folder))), {})
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json"))
    assert files == [f"eval_results/{name}/temporal_custom_sae_eval_results.json" for name in ("core", "n2g", "scr")]
    scr = json.loads((tmp_path / files[2]).read_text())["eval_result_metrics"]["scr_metrics"]
    (drawn,) = graphs.get_eval_results([files[2]]).values()
    assert scr.items() <= drawn.items()
    (l0,) = (found["l0"] for found in graphs.get_core_results([files[0]]).values())
    assert l0 > 0


def test_saebench_s_script_knows_two_models(target):
    from sae_bench.custom_saes.run_all_evals_custom_saes import run_evals as of_saebench

    with pytest.raises(ValueError, match="Unsupported model: sandbox"):
        of_saebench("sandbox", [], 8, "float32", "cpu", ["core"])


def test_the_arguments_of_saebench_s_run_evals_and_its_folders_are_ours():
    from inspect import signature

    from sae_bench.custom_saes.run_all_evals_custom_saes import output_folders
    from sae_bench.custom_saes.run_all_evals_custom_saes import run_evals as of_saebench

    assert list(signature(run_evals).parameters)[: len(signature(of_saebench).parameters)] == list(
        signature(of_saebench).parameters
    )
    ours = {HOST_NAMES.get(name, name): f"eval_results/{HOST_NAMES.get(name, name)}" for name in GROUPS["saebench"]}
    assert output_folders.items() <= ours.items()


def test_a_group_leaves_out_what_the_target_does_not_allow(target, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GROUPS, "few", ("core", "absorption", "ravel"))
    small = replace(target, evaluations={"core": SMALL["core"]})
    monkeypatch.chdir(tmp_path)
    results = run_evals(small, [("x", identity(target))], 16, "float32", "cpu", ["few"])
    assert list(results) == ["core"]
    printed = capsys.readouterr().out
    assert "left out: absorption: absorption needs 10 words" in printed
    assert "left out: ravel: cannot get the prompts" in printed
    with pytest.raises(CannotDo, match="absorption needs 10 words"):
        run_evals(small, [("x", identity(target))], eval_types=["absorption"])
    with pytest.raises(UsageError, match="llm_dtype is 'bfloat16', but the target"):
        run_evals(small, [], llm_dtype="bfloat16")
    with pytest.raises(UsageError, match="did you mean 'core'"):
        run_evals(small, [], eval_types=["corr"])


def test_settings_and_the_batch_reach_the_evaluation(target, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Core, "evaluate", lambda self, sae, target, settings, context: seen.append(settings) or {})
    monkeypatch.setattr(saebench_api, "evaluate_sae", lambda scoring, *_: seen.append(scoring.settings) or ({}, {}))
    monkeypatch.chdir(tmp_path)
    settings = {"sparse_probing_sae_probes": SMALL["sae_probes"], "core": host_config("core", context_size=32)}
    run_evals(target, [("x", identity(target))], 7, eval_types=["core", "sae_probes", "autointerp"], settings=settings)
    assert seen[0].context_size == 32
    assert seen[1].ks == SMALL["sae_probes"]["ks"]
    assert seen[2].llm_batch_size == 7


@pytest.mark.parametrize("selected", ["an sae", ("name", None), (1, "folder")])
def test_what_is_no_pair_of_a_name_and_an_sae_is_refused_before_the_model_is_loaded(target, tmp_path, selected):
    run = make_run_eval("n2g", target)
    with pytest.raises(UsageError, match=r"selected_saes holds pairs \(name, SAE or folder\), not"):
        run({}, [selected], "cpu", str(tmp_path))


def test_a_context_that_is_too_long_is_refused_before_the_model_is_loaded(target, tmp_path):
    run = make_run_eval("autointerp", target)
    with pytest.raises(UsageError, match="--llm-context-size 9999 exceeds the model's 128 positions"):
        run({"llm_context_size": 9999}, [], "cpu", str(tmp_path))
