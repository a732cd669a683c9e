"""Reliability: the spread between training seeds and between evaluation seeds, and the differences that are real."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import stdev, variance

import pytest
from conftest import TINY
from test_leaderboard import CE, over_seeds

from eval_runners.__main__ import main
from eval_runners.contract.registry import GROUPS
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.reliability import measure_reliability, reliability_markdown
from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import target_documents

A, B, C = [0.90, 0.92, 0.94], [0.80, 0.83, 0.83], [0.90, 0.93, 0.931]
"""Pairs a-b and b-c are told apart."""


def again(result, eval_seed, value):
    """The result by another evaluation seed."""
    copy = json.loads(json.dumps(result))
    copy["eval_result_metrics"]["model_performance_preservation"]["ce_loss_score"] = value
    copy["eval_result_unstructured"]["provenance"]["eval_seed"] = eval_seed
    return copy


@pytest.fixture
def results():
    of_a, of_b, of_c = over_seeds("a", A), over_seeds("b", B), over_seeds("c", C)
    further = [again(of_a[0], 1, 0.903), again(of_b[0], 1, 0.804), again(of_c[0], 1, 0.9), again(of_c[0], 2, 0.9)]
    untrained = over_seeds("random", [0.1, 0.5, 0.9], trained=False, tokens=0)
    return [*of_a, *of_b, *of_c, *further, *untrained, again(untrained[0], 1, 0.2), *over_seeds("alone", [0.1, 0.9])]


def test_spreads_by_hand(results):
    ((_, metrics),) = measure_reliability(results)
    ce = next(each for each in metrics if each.column == CE)
    assert (set(ce.labels), ce.n_seeds) == (set("abc"), 3)
    assert ce.between == pytest.approx(stdev([0.92, 0.82, 2.761 / 3]))
    assert ce.training == pytest.approx(((0.0004 + 0.0003 + variance(C)) / 3) ** 0.5)
    # variances .003² / 2, .004² / 2 and, with two degrees of freedom, 0
    assert ce.evaluation == pytest.approx(((0.003**2 / 2 + 0.004**2 / 2 + 0) / 4) ** 0.5)
    # differences a-b .1, .099; a-c 0, .003; b-c -.1, -.096
    assert ce.evaluation_difference == pytest.approx(((0.001**2 + 0.003**2 + 0.004**2) / 2 / 3) ** 0.5)
    spreads = [variance([0.1, 0.09, 0.11]), variance([0, 0.01, -0.009]), variance([0.1, 0.1, 0.101])]
    assert ce.difference == pytest.approx((sum(spreads) / 3) ** 0.5)
    assert (ce.told_apart, ce.pairs) == (2, 3)
    assert ce.cells[5] == f"{4.302653 * ce.difference / 3**0.5:.2g}"
    assert ce.cells[6] == f"{2.776445 * ce.difference / 5**0.5:.2g}"


def test_only_results_under_the_same_conditions_count_as_repeated(results):
    ((_, before),) = measure_reliability(results)
    other = again(results[0], 1, 0.2)
    other["eval_config"]["context_size"] = 64
    newer = again(results[0], 1, 0.903)
    newer["datetime_epoch_millis"] = 5
    ((_, after),) = measure_reliability([*results, other, newer, again(results[0], 1, 0.2)])
    assert [each.evaluation for each in after] == [each.evaluation for each in before]


def test_results_by_other_evaluation_seeds_are_on_no_board(results):
    (board,) = make_boards(results)
    numbers = {row.label: row.number(CE) for row in board.rows}
    assert numbers["a"][0] == pytest.approx(0.92)


def test_markdown(results):
    text = reliability_markdown(results)
    assert text.startswith("tiny, blocks.0.hook_resid_post, 3 seeds of `")
    assert "| core | CE loss score | 0.058 |" in text
    assert "| 2 of 3 |" in text
    assert reliability_markdown(over_seeds("a", A)) == ""


def test_evaluation_seeds_read_other_heldout_documents_once(target):
    assert target.eval_seed == 0
    in_order = list(target_documents(target, "heldout"))
    one, same, other = (list(target_documents(replace(target, eval_seed=seed), "heldout")) for seed in (1, 1, 2))
    assert one == same
    assert len({tuple(in_order), tuple(one), tuple(other)}) == 3
    assert sorted(in_order) == sorted(one) == sorted(other)
    training = list(target_documents(target, "train"))
    assert list(target_documents(replace(target, eval_seed=1), "train")) == training


def test_the_command(target, tmp_path, model_folder, text_file, capsys, monkeypatch):
    words = [word for key, value in TINY.items() for word in (f"--train.{key.replace('_', '-')}", str(value))]
    settings = ["--core.batch-size-prompts", "4", "--core.n-eval-reconstruction-batches", "1"]
    settings += ["--core.n-eval-sparsity-variance-batches", "2", "--core.context-size", "32"]
    argv = [
        *["reliability", "--sae", "stock:batchtopk", "--sae", "temporal", "--evals", "core", "--seeds", "0,1,2"],
        *["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)],
        *["--trained", str(tmp_path / "trained"), "--output", str(tmp_path / "out"), *words, *settings],
        *["--eval-seeds", "0,1", "--markdown", str(tmp_path / "table.md")],
    ]
    main(argv)
    said = capsys.readouterr().out
    assert "CE loss score" in said
    files = sorted((tmp_path / "out").rglob("*.json"))
    seeds = [json.loads(file.read_text())["eval_result_unstructured"]["provenance"]["eval_seed"] for file in files]
    assert sorted(seeds) == [0] * 6 + [1] * 2
    assert "3 seeds of" in (tmp_path / "table.md").read_text()
    code = main(argv)
    assert capsys.readouterr().out.count("reused") == 8
    monkeypatch.setitem(GROUPS, "few", ("core", "absorption", "ravel"))
    of_a_group = ["few" if word == "core" else word for word in argv]
    assert main(of_a_group) == code
    printed = capsys.readouterr().out
    assert printed.count("reused") == 8
    assert "left out: absorption: absorption needs 10 words of the tokenizer for each first letter" in printed
    assert printed.count("left out: ravel: cannot get the prompts adamkarvonen/ravel_prompts") == 2  # first and last
    assert "\nabsorption: " not in printed, "it is no failure"
    with pytest.raises(UsageError, match="cannot get the prompts"):  # it is asked for
        main([*argv, "--evals", "core,ravel"])


def test_a_group_of_which_the_target_allows_nothing_is_refused(monkeypatch):
    monkeypatch.setitem(GROUPS, "few", ("ravel", "unlearning"))
    with pytest.raises(UsageError, match=r"sandbox allows none of the evaluations: ravel: .*; unlearning: "):
        main(["reliability", "--sae", "temporal", "--sae", "topk", "--evals", "few"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0,1"], "--seeds needs 3 training seeds at least, not 2"),
        (["--eval-seeds", "0"], "needs a seed beside 0"),
        (["--evals", "corre"], "did you mean 'core'"),
        (["--evals", ","], "names no evaluation"),
        (["--core.contxt-size", "3"], "unrecognized arguments: --contxt-size"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(words, says):
    with pytest.raises(UsageError, match=says):
        main(["reliability", "--sae", "temporal", "--sae", "topk", *words])


@pytest.mark.parametrize("names", [["temporal"], ["temporal", "random"]])
def test_there_are_no_differences_without_two_saes_that_learn(names):
    with pytest.raises(UsageError, match="two SAEs at least"):
        main(["reliability", *(word for name in names for word in ("--sae", name))])
