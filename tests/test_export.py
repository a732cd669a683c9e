"""Exported results are read and drawn by SAEBench's own graphs."""

from __future__ import annotations

import json

import pytest
from test_leaderboard import made

from eval_runners.__main__ import main
from eval_runners.commands.export.saebench import FOLDERS
from eval_runners.contract.registry import GROUPS, load_evaluator
from sae_variants.common.errors import UsageError


@pytest.fixture
def graphs(monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    from sae_bench.sae_bench_utils import graphing_utils

    monkeypatch.setattr(graphing_utils.plt, "show", lambda: None)
    return graphing_utils


def export(folder, *more: str) -> int:
    return main(["export", "saebench", str(folder), "--results", "results/published", *more])


@pytest.mark.filterwarnings("ignore:.*open_warning:RuntimeWarning")
def test_saebench_s_graphs_draw_them(tmp_path, monkeypatch, graphs):
    folder = tmp_path / "exported"
    assert export(folder, "--l0", "30", "--d-sae", "1024", "--recipe") == 0
    monkeypatch.chdir(folder)  # the test's own path may hold a word that SAEBench takes for an evaluation
    core, probing = (sorted(map(str, (folder / name).glob("*"))) for name in ("core", "sparse_probing"))
    core, probing = ([path.removeprefix(f"{folder}/") for path in paths] for paths in (core, probing))
    found = graphs.get_eval_results(probing)
    assert {f"sandbox_topk_seed{seed}" for seed in (0, 1, 2)} <= set(found)
    classes = {values["sae_class"] for values in found.values()}
    assert {"batch_topk", "topk", "topk (sae-variants)", "standard", "random"} <= classes
    published = json.loads(next(iter((folder / "sparse_probing").glob("sandbox_topk_seed0_*"))).read_text())
    of_seed_0 = found["sandbox_topk_seed0"]
    assert of_seed_0["sae_top_1_test_accuracy"] == published["eval_result_metrics"]["sae"]["sae_top_1_test_accuracy"]
    assert of_seed_0["train_tokens"] == 1_048_576
    names = [name for name in found if "topk" in name or "stock" in name]
    ours = [path for path in probing if any(name in path for name in names)]
    graphs.plot_results(ours, core, "sparse_probing", str(tmp_path / "picture"), k=1)
    assert (tmp_path / "picture_2var_sae_type.png").stat().st_size > 10_000


DRAWN = {
    "sparse_probing": ("sparse_probing", "sae", "sae_top_2_test_accuracy", 2),
    "sparse_probing_sae_probes": ("sparse_probing_sae_probes", "sae", "sae_top_2_test_accuracy", 2),
    "absorption": ("absorption_first_letter", "mean", "mean_absorption_fraction_score", None),
    "autointerp": ("autointerp", "autointerp", "autointerp_score", None),
    "scr": ("scr", "scr_metrics", "scr_metric_threshold_20", 20),
    "tpp": ("tpp", "tpp_metrics", "tpp_threshold_20_total_metric", 20),
    "unlearning": ("unlearning", "unlearning", "unlearning_score", None),
}
"""SAEBench's folder -> type of the results, category and name of the metric that its graphs draw, number of latents."""


def made_of(folder, label, value):
    eval_type, category, metric, _ = DRAWN[folder]
    return made(label) | {"eval_type_id": eval_type, "eval_result_metrics": {category: {metric: value}}}


def write_results(folder, results):
    folder.mkdir()
    for number, result in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(result))


def test_the_evaluations_are_those_that_saebench_s_graphs_read(graphs):
    assert set(FOLDERS.values()) == {"core", *DRAWN}
    for evaluation in GROUPS["saebench"]:
        result_type = load_evaluator(evaluation).result_type
        path = f"{FOLDERS.get(result_type, result_type)}/x_eval_results.json"
        if result_type in FOLDERS:
            graphs.get_custom_metric_key_and_name(path, 2)
        else:
            with pytest.raises(ValueError, match="Please add the correct key"):
                graphs.get_custom_metric_key_and_name(path, 2)


@pytest.mark.parametrize("folder", DRAWN)
def test_saebench_s_graphs_draw_every_evaluation(folder, tmp_path, monkeypatch, graphs):
    labels = ("topk", "describe", "my_tpp")  # SAEBench's graphs take two of these for evaluations
    values = dict(zip(labels, (0.25, 0.5, 0.75), strict=True))
    of_core = [made(label, l0=l0) for label, l0 in zip(labels, (10.0, 20.0, 30.0), strict=True)]
    write_results(tmp_path / "results", [*of_core, *(made_of(folder, *pair) for pair in values.items())])
    assert main(["export", "saebench", str(tmp_path / "to"), "--results", str(tmp_path / "results")]) == 0
    monkeypatch.chdir(tmp_path / "to")
    files, core = (graphs.find_eval_results_files([name]) for name in (folder, "core"))
    found = graphs.get_eval_results(files)
    assert {name: each[DRAWN[folder][2]] for name, each in found.items()} == {
        f"None_{name}_seed0": value
        for name, value in zip(("topk", "des-cribe", "my_t-pp"), values.values(), strict=True)
    }
    drawn, draw = [], graphs.plot_2var_graph
    monkeypatch.setattr(
        graphs, "plot_2var_graph", lambda results, *a, **k: drawn.append(results) or draw(results, *a, **k)
    )
    graphs.plot_results(files, core, folder, str(tmp_path / "picture"), k=DRAWN[folder][3])
    assert sorted((each["l0"], each[DRAWN[folder][2]]) for each in drawn[0].values()) == [
        (10.0, 0.25), (20.0, 0.5), (30.0, 0.75),
    ]  # fmt: skip
    assert (tmp_path / "picture_2var_sae_type.png").stat().st_size > 10_000


def test_saes_without_core_results_are_named(tmp_path, capsys):
    write_results(tmp_path / "results", [made("topk"), made_of("scr", "topk", 0.5), made_of("scr", "tree", 0.5)])
    assert main(["export", "saebench", str(tmp_path / "to"), "--results", str(tmp_path / "results")]) == 0
    assert "take L0 from core, which 1 of the SAEs lack: None_tree_seed0_eval_results.json" in capsys.readouterr().err


def test_two_conditions_of_one_sae_are_two_files(tmp_path):
    results = [made("temporal", ce=0.9), made("temporal", ce=0.8)]
    results[1]["eval_config"]["context_size"] = 64
    (tmp_path / "results").mkdir()
    for number, result in enumerate(results):
        (tmp_path / "results" / f"{number}.json").write_text(json.dumps(result))
    assert main(["export", "saebench", str(tmp_path / "to"), "--results", str(tmp_path / "results")]) == 0
    scores = [json.loads(path.read_text())["eval_result_metrics"] for path in (tmp_path / "to" / "core").iterdir()]
    assert sorted(score["model_performance_preservation"]["ce_loss_score"] for score in scores) == [0.8, 0.9]


def test_a_long_label_is_shortened_by_its_hash(tmp_path):
    results = [made(f"temporal[{'x' * 300} k={k}]") for k in (1, 2)]
    (tmp_path / "results").mkdir()
    for number, result in enumerate(results):
        (tmp_path / "results" / f"{number}.json").write_text(json.dumps(result))
    assert main(["export", "saebench", str(tmp_path / "to"), "--results", str(tmp_path / "results")]) == 0
    names = [path.name for path in (tmp_path / "to" / "core").iterdir()]
    assert len(names) == 2
    assert all("_temporal-xxx" in name and name.endswith("_seed0_eval_results.json") for name in names)


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    with pytest.raises(UsageError, match="no results of core, sparse_probing"):
        export(tmp_path, "--evals", "n2g")
    with pytest.raises(UsageError, match="give another FOLDER"):
        export("/proc/x")
    export(tmp_path / "scratch", "--sae", "pca")
    assert "take 'scr' in" in capsys.readouterr().err
