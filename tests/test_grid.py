"""Grids over fields: cells, labels, one stream, resumption, the table."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
import pytest
from conftest import TINY

from eval_runners.commands import evaluate as eval_command
from sae_variants import __main__ as variants_main
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target
from sae_variants.registry import variants
from sae_variants.training import train as train_module
from sae_variants.training.grid import make_plans, parse_grid
from sae_variants.training.train import _train_group


def test_every_combination_is_a_cell():
    assert parse_grid(["window=2,4", "consistency-coefficient=0,0.5"]) == [
        {"window": 2, "consistency_coefficient": 0}, {"window": 2, "consistency_coefficient": 0.5},
        {"window": 4, "consistency_coefficient": 0}, {"window": 4, "consistency_coefficient": 0.5},
    ]  # fmt: skip
    assert parse_grid([]) == [{}]
    assert parse_grid(["consistency=variance,similarity"])[1] == {"consistency": "similarity"}
    assert parse_grid(["k=4,4"]) == [{"k": 4}]
    assert parse_grid(["matryoshka_widths=[8,16], [16],[16]"]) == [
        {"matryoshka_widths": [8, 16]}, {"matryoshka_widths": [16]},
    ]  # fmt: skip


def test_a_variation_stands_beside_every_combination():
    assert parse_grid([], ["pairs=adjacent", "window=4,nested-coefficient=1"]) == [
        {}, {"pairs": "adjacent"}, {"window": 4, "nested_coefficient": 1},
    ]  # fmt: skip
    assert parse_grid([], ["matryoshka_widths=[8,16],k=4"])[1] == {"matryoshka_widths": [8, 16], "k": 4}
    assert parse_grid(["k=1,2"], ["window=4"]) == [{"k": 1}, {"k": 1, "window": 4}, {"k": 2}, {"k": 2, "window": 4}]
    with pytest.raises(UsageError, match="k is given twice: in --grid and in --vary"):
        parse_grid(["k=1,2"], ["k=3"])


@pytest.mark.parametrize("option", ["window", "window=", "=3", "window=,"])
def test_what_is_no_grid_is_refused(option):
    with pytest.raises(UsageError, match="--grid is written FIELD=VALUE"):
        parse_grid([option])
    with pytest.raises(UsageError, match="--vary is written FIELD=VALUE"):
        parse_grid([], [option])


@pytest.mark.parametrize(
    ("recipe", "overrides", "points", "seeds", "says"),
    [
        ({}, {"d_sae": 0}, [{}], [0], "d_sae must be at least 1, not 0"),
        ({}, {}, [{"d_sae": 64}, {"d_sae": 2.5}], [0], "d_sae must be int, not 2.5"),
        ({}, {}, [{}], [0, -1], "seed must not be negative"),
        ({"training_tokens": 512}, {"batch_tokens": 1024}, [{}], [0], "512 are fewer than one batch of 1024 tokens"),
        ({"learning_rate": "x"}, {}, [{}], [0], r"learning_rate in \[train\] of sandbox must be float, not 'x'"),
        ({}, {"k": 4}, [{"k": 2}], [0], "k is given twice"),
        ({}, {}, [{"seed": 1}], [0], "give --seeds"),
    ],
)
def test_a_sweep_is_checked_before_its_variants_are_imported(monkeypatch, recipe, overrides, points, seeds, says):
    monkeypatch.setattr(variants, "import_variants", lambda: pytest.fail("imports variants"))
    target = replace(load_target("sandbox"), train=recipe)
    with pytest.raises(UsageError, match=says):
        make_plans(["topk"], target, overrides, points, seeds)


def test_a_variant_s_own_recipe_counts_in_the_check_of_a_sweep(target):
    small = replace(
        target, train={**target.train, "training_tokens": 512}, variants={"topk": {"training_tokens": 4096}}
    )
    (plan,) = make_plans(["topk"], small, {"batch_tokens": 1024}, [{}], [0])
    assert plan.settings.steps == 4


def labels(target, names, overrides, options, seeds=(0,)):
    plans = make_plans(names, target, overrides, parse_grid(options), list(seeds))
    return [(plan.label, plan.settings.seed) for plan in plans]


def test_labels_say_what_differs_from_the_recipe_and_saes_without_the_field_stand_once(target):
    found = labels(target, ["temporal", "stock:batchtopk"], {}, ["nested_coefficient=0,0.5"], (0, 1))
    assert found == [
        ("temporal", 0), ("temporal", 1),
        ("temporal[nested_coefficient=0.5]", 0), ("temporal[nested_coefficient=0.5]", 1),
        ("stock:batchtopk", 0), ("stock:batchtopk", 1),
    ]  # fmt: skip


def test_one_sae_has_one_label_however_it_is_asked_for(target):
    asked = [
        labels(target, ["temporal"], overrides, options, [3])
        for overrides, options in (
            ({"k": 2}, []),
            ({"k": 2.0, "window": 8}, []),
            ({}, ["k=2"]),
            ({"window": 8}, ["k=2.0"]),
        )
    ]
    assert asked == [[("temporal[k=2]", 3)]] * 4


@pytest.mark.parametrize(
    ("overrides", "options", "says"),
    [({}, ["windov=2"], "did you mean 'window'"), ({"window": 4}, ["window=2"], "given twice"), ({}, ["seed=1,2"], "give --seeds"), ({}, ["k=2", "k=3"], "twice")],
)  # fmt: skip
def test_fields_that_cannot_be(target, overrides, options, says):
    with pytest.raises(UsageError, match=says):
        labels(target, ["temporal"], overrides, options)


def words(target, root, model_folder, text_file, prefix: str) -> list[str]:
    train = {key: value for key, value in TINY.items() if key != "k"} | {"training_tokens": 1024}
    options = [word for key, value in train.items() for word in (f"--{prefix}{key.replace('_', '-')}", str(value))]
    where = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    return [*where, "--trained", str(root), "--grid", "k=2,4", "--seeds", "0,1", *options]


def test_a_grid_trains_in_one_stream_per_seed_and_is_found_again(
    target, tmp_path, model_folder, text_file, monkeypatch, capsys
):
    groups = []
    train_group = _train_group
    monkeypatch.setattr(
        train_module, "_train_group", lambda plans, *args: groups.append(len(plans)) or train_group(plans, *args)
    )
    argv = words(target, tmp_path / "trained", model_folder, text_file, "")
    assert variants_main.main(["train", "temporal", *argv]) == 0
    assert groups == [2, 2]
    assert len(re.findall(r"^temporal\[.* k=2 .*\] seed [01]: ", capsys.readouterr().out, re.MULTILINE)) == 2
    assert variants_main.main(["train", "temporal", *argv]) == 0
    assert groups == [2, 2]
    assert capsys.readouterr().out.count("(was trained)") == 4


def test_an_evaluation_of_a_grid_is_a_table_and_a_csv(target, tmp_path, model_folder, text_file, capsys):
    argv = words(target, tmp_path / "trained", model_folder, text_file, "train.")
    argv += [
        "--output",
        str(tmp_path / "out"),
        "--n-contexts",
        "8",
        "--context-size",
        "32",
        "--n-min",
        "1",
        "--csv",
        str(tmp_path / "t.csv"),
    ]
    eval_command.main("positional_consistency", ["--sae", "temporal", *argv])
    shown = capsys.readouterr().out
    assert re.search(r"\[4/4\] temporal\[.* k=4 .*\] \(seed 1\)", shown)
    table = pd.read_csv(tmp_path / "t.csv")
    assert table[["sae", "seed", "k"]].values.tolist() == [["temporal", s, k] for k in (2, 4) for s in (0, 1)]
    assert (
        table[table.k == 4]["positional_consistency.all.l0"].mean()
        > table[table.k == 2]["positional_consistency.all.l0"].mean()
    )


@pytest.mark.parametrize(
    ("places", "stretched"),
    [
        ([2, 4, 8, 16, 32], True),
        ([0, 0.05, 0.1, 0.5, 1, 3], True),
        ([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], False),
        ([1, 2], False),
    ],
)
def test_a_picture_stretches_only_what_is_crowded(places, stretched):
    from eval_runners.views.grid_picture import _is_stretched

    assert _is_stretched(places) is stretched
