"""The suite: every cell, found again, failing ones named at the end, its options sent where they belong."""

from __future__ import annotations

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import pytest
from conftest import TINY, tiny

from eval_runners.__main__ import main
from eval_runners.commands.suite import split_options
from eval_runners.contract.registry import GROUPS, load_evaluator
from eval_runners.core import Core
from eval_runners.harness.score import prepare_scoring
from eval_runners.store.read import mean_and_interval
from eval_runners.views.grid_picture import _draw_line, _lines
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target
from sae_variants.registry.variants import import_variants, stock_names
from sae_variants.training.grid import make_plans
from sae_variants.training.plan import make_plan
from sae_variants.training.recipe import l0_fields

SETTINGS = [
    "--core.batch-size-prompts",
    "4",
    "--core.n-eval-reconstruction-batches",
    "1",
    "--core.n-eval-sparsity-variance-batches",
    "2",
    "--core.context-size=32",
    "--positional-consistency.n-contexts",
    "8",
    "--positional-consistency.context-size",
    "32",
    "--positional-consistency.n-min",
    "1",
]


def words(target, root, model_folder, text_file) -> list[str]:
    train = {key: value for key, value in TINY.items() if key != "k"} | {"training_tokens": 1024}
    options = [word for key, value in train.items() for word in (f"--train.{key.replace('_', '-')}", str(value))]
    where = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    return ["suite", *where, "--trained", str(root / "trained"), "--output", str(root / "out"), *options, *SETTINGS]


@pytest.mark.slow
def test_every_cell_is_scored_once_and_found_again(target, tmp_path, model_folder, text_file, capsys, monkeypatch):
    argv = [
        *words(target, tmp_path, model_folder, text_file),
        "--sae",
        "temporal",
        "--sae",
        "stock:standard",
        "--evals",
        "core,positional_consistency",
        "--grid",
        "k=2,4",
        "--seeds",
        "0,1",
        "--csv",
        str(tmp_path / "t.csv"),
        "--picture",
        str(tmp_path / "t.png"),
    ]
    main(argv)
    said = capsys.readouterr().out
    assert said.count("evaluating core on") == 6, "two cells of temporal and one of standard, two seeds"
    assert said.count("evaluating positional_consistency on") == 6
    table = pd.read_csv(tmp_path / "t.csv")
    assert table.groupby("sae").size().to_dict() == {"temporal": 4, "stock:standard": 2}
    assert {"core.l0", "positional_consistency.all.l0", "k"} <= set(table.columns)
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    results = {path: json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*.json")}
    one = next(iter(results))
    one.write_text(json.dumps(results[one] | {"sae_lens_id": "as an older recipe had it"}))
    main(argv)
    assert {path: json.loads(path.read_text()) for path in results} == results
    again = capsys.readouterr().out
    assert again.count("(reused:") == 12
    assert "evaluating" not in again


def test_a_cell_that_fails_is_named_and_the_others_finish(
    target, tmp_path, model_folder, text_file, capsys, monkeypatch
):
    evaluate = Core.evaluate

    def fails_once(self, sae, *args):
        if sae.cfg.metadata.seed == 0:
            raise RuntimeError("out of luck\nat length")
        return evaluate(self, sae, *args)

    monkeypatch.setattr(Core, "evaluate", fails_once)
    argv = [*words(target, tmp_path, model_folder, text_file), "--sae", "temporal", "--evals", "core", "--seeds", "0,1"]
    assert main(argv_without(argv)) == 1
    said = capsys.readouterr().out
    assert "core of [1/2] temporal" in said
    assert "RuntimeError: out of luck" in said
    assert said.count("evaluating core on") == 2
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1


def argv_without(argv):
    """The words without settings of evaluations that are not asked for."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word.startswith("--positional-consistency."):
            skip = True
        else:
            kept.append(word)
    return kept


def test_of_a_group_what_the_target_does_not_allow_is_left_out_with_the_reason(
    target, trained, tmp_path, model_folder, text_file, capsys, monkeypatch
):
    monkeypatch.setitem(GROUPS, "few", ("core", "absorption", "ravel"))
    argv = words(target, tmp_path, model_folder, text_file)[:7]
    sae = make_plan("stock:batchtopk", target, tiny("stock:batchtopk"), trained).folder
    where = ["--output", str(tmp_path / "out"), "--sae", str(sae)]
    core = [option for option in SETTINGS if not option.startswith("--positional")][:7]
    assert main([*argv, *where, "--evals", "few", *core]) == 0
    printed = capsys.readouterr().out
    assert "left out: absorption: absorption needs 10 words of the tokenizer for each first letter" in printed
    assert "left out: ravel: cannot get the prompts adamkarvonen/ravel_prompts" in printed
    assert [path.parts[-3] for path in (tmp_path / "out").rglob("*.json")] == ["core"]
    with pytest.raises(UsageError, match="absorption needs 10 words"):  # it is asked for
        main([*argv, *where, "--evals", "few,absorption", *core])
    with pytest.raises(UsageError, match="cannot get the prompts"):
        main([*argv, *where, "--evals", "few,ravel", *core])


def test_options_go_where_they_belong():
    extra = ["--train.k", "4", "--core.context-size=64", "--sparse-probing.k-values", "1,5"]
    overrides, settings = split_options(extra, ["core", "sparse_probing"])
    assert overrides == {"k": 4}
    assert settings == {"core": {"context_size": 64}, "sparse_probing": {"k_values": (1, 5)}}


def l0_settings(name, l0, target="sandbox"):
    return l0_fields(name, l0, load_target(target))


def test_a_lower_level_is_the_same_sae_whether_its_l0_or_its_k_is_given():
    target = load_target("sandbox")
    by_l0 = make_plan("hierarchical:lower", target, l0_settings("hierarchical:lower", 30.0))
    assert by_l0.folder == make_plan("hierarchical:lower", target, {"k": 15}).folder
    assert by_l0.kind == make_plan("hierarchical:lower", target, {"k": 15, "lower_k": 0.0}).kind


def test_a_coefficient_of_another_training_is_said_to_be_one(capsys):
    target = load_target("sandbox")
    l0_fields("stock:standard", 30.0, target, {"seed"})
    l0_fields("temporal", 30.0, target, {"training_tokens"})
    assert capsys.readouterr().err == ""
    l0_fields("stock:standard", 30.0, target, {"training_tokens"})
    assert "l1_coefficient for L0 30 was measured with the recipe of sandbox" in capsys.readouterr().err


def test_l0_is_k_or_the_coefficient_that_the_target_knows():
    assert l0_settings("temporal", 15.0) == {"k": 15}
    assert l0_settings("temporal", 0.5) == {"k": 0.5}
    assert l0_settings("hierarchical", 15.0) == {"k": 15}
    assert l0_settings("hierarchical:lower", 15.0) == {"k": 7.5, "lower_k": 0}, "twice k fire in the lower level"
    assert l0_settings("stock:standard", 30.0) == {"l1_coefficient": 1.36}
    with pytest.raises(
        UsageError,
        match=r"stock:standard has no k, and the target sandbox knows its l1_coefficient for L0 .* only, not 31",
    ):
        l0_settings("stock:standard", 31.0)
    fields = {"gated": "l1_coefficient", "jumprelu": "l0_coefficient", "matching_pursuit": "max_iterations"}
    for name, field in fields.items():
        with pytest.raises(UsageError, match=rf"its {field} for no L0: try .* --grid {field}=1,2,4"):
            l0_settings(f"stock:{name}", 30.0, "gpt2-small-l8")


def test_train_takes_an_l0_for_every_name():
    names = ["topk", "stock:standard", "hierarchical"]
    plans = make_plans(names, load_target("sandbox"), {}, [{}], [0], l0=15.0)
    expected = [{"k": 15}, {"l1_coefficient": 2.17}, {"k": 15}]
    assert [
        {field: plan.fields[field] for field in fields} for plan, fields in zip(plans, expected, strict=True)
    ] == expected


@pytest.mark.parametrize("target", ["sandbox", "synthetic", "synthetic-flat", "synthetic-sequence"])
def test_targets_without_a_network_know_what_gives_each_stock_architecture_its_l0(target):
    import_variants()
    for name in stock_names():
        values = [list(l0_settings(name, l0, target).values()) for l0 in (15.0, 30.0, 60.0)]
        assert len({str(value) for value in values}) == 3, name


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--evals", "corre"], "did you mean 'core'"),
        (["--evals", ","], "names no evaluation"),
        (["--l0", "many"], "list of numbers"),
        (["--l0", "0"], "--l0 must list numbers above 0, not '0'"),
        (["--l0", "nan"], "--l0 must list numbers above 0"),
        (["--picture", "x.png"], "draws a --grid"),
        (["--corre.context-size", "4"], "unknown option or argument '--corre.context-size'"),
        (["--core.contextsize", "4"], "contextsize"),
        (["--grid", "windov=2"], "did you mean 'window'"),
        (["--train.windov", "2"], "did you mean 'window'"),
        (["--sae", "temporall"], "did you mean 'temporal'"),
        (["--l0", "16", "--grid", "k=4"], "k is given twice"),
    ],
)
def test_bad_options_are_refused_before_any_work(argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        main(["suite", "--sae", "temporal", *argv])
    assert not list(tmp_path.iterdir())


def located(label, seed, **point):
    return SimpleNamespace(label=label, seed=seed, grid_point=point)


def core_result(**preservation):
    return {"eval_type_id": "core", "eval_result_metrics": {"model_performance_preservation": preservation}}


def test_a_picture_shows_the_table_s_means_and_errors():
    column = ("core", next(metric for metric in load_evaluator("core").metrics if metric.name == "ce_loss_score"))
    scored = [
        *[(located("temporal[k=2]", seed, k=2), core_result(ce_loss_score=0.4 + 0.2 * seed)) for seed in (0, 1)],
        *[
            (located("temporal[k=4]", seed, k=4), core_result(**{"ce_loss_score": 0.9} if seed else {}))
            for seed in (0, 1)
        ],
        *[(located("temporal[k=8]", seed, k=8), core_result(ce_loss_score=0.9)) for seed in (0,)],
        (located("random", 0), core_result(ce_loss_score=0.1)),
    ]
    lines = _lines(scored, ["k"])
    assert {label: list(points) for label, points in lines.items()} == {"temporal": [2, 4, 8], "random": [None]}
    panel = Mock()
    for label, points in lines.items():
        _draw_line(panel, column, label, points, {2: 2, 4: 4, 8: 8}, {"color": "black"})
    places, means, errors = panel.errorbar.call_args.args
    assert places == [2, 8], "a seed of k = 4 has no number, so the table has none either"
    assert list(zip(means, errors, strict=True)) == [
        mean_and_interval(column[1], [result for _, result in scored[:2]]),
        (0.9, 0.0),
    ]
    assert panel.axhline.call_args.args == (0.1,)


def test_scoring_is_prepared_with_the_targets_settings():
    scoring = prepare_scoring("core", load_target("sandbox"), {"context_size": 64}, None, [])
    assert (scoring.settings.context_size, scoring.settings.n_eval_reconstruction_batches) == (64, 16)


def test_options_of_a_training_are_refused_where_nothing_is_trained(trained, target, tmp_path):
    folder = next(path.parent for path in trained.rglob("sae_weights.safetensors"))
    with pytest.raises(UsageError, match=r"--train.k would do nothing: .* is trained already"):
        main(["suite", "--sae", str(folder), "--train.k", "3", "--output", str(tmp_path)])


def test_a_misspelt_control_of_the_jobs_is_named():
    with pytest.raises(UsageError, match="unknown command of suite 'stauts': did you mean 'status'"):
        main(["suite", "stauts"])
