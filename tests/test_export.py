"""Exported results are read and drawn by SAEBench's own graphs."""

from __future__ import annotations

import json

import pytest
from test_leaderboard import made

from eval_runners.__main__ import main
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
