"""The leaderboard: what stands side by side, what is ranked, and what a table must not hide."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval_runners.__main__ import main
from eval_runners.core import METRICS
from eval_runners.leaderboard.boards import comparable_rows, make_boards, select_evaluations
from eval_runners.leaderboard.render import format_number, to_markdown
from eval_runners.leaderboard.rows import Column, metrics_of
from eval_runners.store.read import read_results
from sae_variants.common.errors import UsageError

ROOT = Path(__file__).parent.parent
BASELINES = ROOT / "results" / "baselines"
CE, EV = (Column("core", metric) for metric in METRICS if metric.short in ("CE score", "explained variance"))


def made(label, seed=0, ce=0.9, ev=0.8, l0=30.0, d_sae=64, tokens=1000, trained=True, when=1, **config):
    """A core result of ours."""
    return {
        "eval_type_id": "core",
        "eval_config": {"model_name": "tiny", "dataset": "text", "context_size": 32, **config},
        "eval_id": f"{label}-{seed}-{when}",
        "datetime_epoch_millis": when,
        "eval_result_metrics": {
            "model_performance_preservation": {"ce_loss_score": ce},
            "sparsity": {"l0": l0},
            "misc_metrics": {"frac_alive": 1.0},
        },
        "eval_result_details": [{"index": 0}],
        "sae_lens_id": label,
        "sae_cfg_dict": {
            "d_sae": d_sae,
            "architecture": "jumprelu",
            "metadata": {"hook_name": "blocks.0.hook_resid_post", "seed": seed},
        },
        "eval_result_unstructured": {
            "explained_variance_corrected": ev,
            "trained": trained,
            "not_trained_because": [] if trained else ["trained on 0 tokens"],
            "provenance": {
                "seed": seed,
                "training_tokens": tokens,
                "weight_hash": f"{label}{seed}{when}",
                "target": "tiny",
                "commit": "abc",
                "command": "python -m eval_runners.core",
                "hook_name": "blocks.0.hook_resid_post",
            },
        },
    }


def over_seeds(label, values, **same):
    return [made(label, seed, value, **same) for seed, value in enumerate(values)]


def board_of(*results):
    (board,) = make_boards([result for one in results for result in (one if isinstance(one, list) else [one])])
    return board


def row_of(board, label):
    return next(row for row in board.rows if row.label == label)


def test_a_row_is_the_mean_over_seeds_with_its_interval():
    board = board_of(over_seeds("a", [0.8, 0.9, 1.0]))
    (row,) = board.rows
    assert row.number(CE) == pytest.approx((0.9, 4.302653 * 0.1 / 3**0.5))  # Student's t with 2 degrees of freedom
    assert row.seeds == [0, 1, 2]


def test_ranks_are_paired_over_seeds():
    # seeds differ by more than a and b do, but b is .01 below a in each
    board = board_of(
        over_seeds("a", [0.90, 0.93, 0.96]),
        over_seeds("b", [0.8899, 0.92, 0.9501]),
        over_seeds("c", [0.80, 0.83, 0.8601]),
    )
    assert [row.label for row in board.rows] == ["a", "b", "c"]
    assert [board.rank(row_of(board, label), CE) for label in "abc"] == [1, 2, 3]
    assert [board.is_best(row_of(board, label), CE) for label in "abc"] == [True, False, False]


def test_only_what_beats_the_next_is_best():
    # the differences of a and d have both signs
    board = board_of(over_seeds("a", [0.90, 0.93, 0.96]), over_seeds("d", [0.93, 0.93, 0.92]))
    assert [board.rank(row, CE) for row in board.rows] == [1, 1]
    assert not any(board.is_best(row, CE) for row in board.rows)


def test_a_row_that_cannot_be_tested_has_no_rank():
    rows = [over_seeds("a", [0.9, 0.93, 0.96]), over_seeds("b", [0.8899, 0.92, 0.9501])]
    for other, is_best in ((0.99, False), (0.9299, False), (0.5, True)):
        board = board_of(*rows, made("c", 0, other))
        assert board.rank(row_of(board, "c"), CE) is None
        assert board.is_best(row_of(board, "a"), CE) is is_best, "c may be better unless it is far below"


def test_a_row_with_a_wide_interval_ranks_no_better_than_one_with_a_better_mean():
    board = board_of(
        over_seeds("a", [0.900, 0.901, 0.902]),
        over_seeds("b", [0.89, 0.891, 0.8921]),
        over_seeds("c", [0.8, 0.9, 0.95]),  # not told apart from a
    )
    assert [board.rank(row_of(board, label), CE) for label in "abc"] == [1, 2, 2]


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_ranks_follow_the_means_whatever_the_noise(better):
    column = CE._replace(metric=replace(CE.metric, better=better))
    generator = random.Random(0)
    for _ in range(20):
        board = board_of(
            *(over_seeds(str(i), [generator.gauss(0.8, 0.02) for _ in range(4)]) for i in range(6)),
            *(over_seeds(str(i), [generator.gauss(0.78, 0.001) for _ in range(4)]) for i in range(6, 10)),
        )
        sign = -1 if better == "higher" else 1
        ordered = sorted(board.rows, key=lambda row: sign * row.number(column)[0])
        ranks = [board.rank(row, column) for row in ordered]
        assert ranks == sorted(ranks)
        assert ranks[0] == 1


def test_many_comparisons_are_corrected():
    """The difference of a and b has p = .032; beside two further rows, a is compared three times."""
    a, b = over_seeds("a", [0.90, 0.92, 0.94]), over_seeds("b", [0.892, 0.9075, 0.9245])
    alone = board_of(a, b)
    assert alone.rank(row_of(alone, "b"), CE) == 2
    board = board_of(a, b, over_seeds("c", [0.88, 0.91, 0.90]), over_seeds("d", [0.89, 0.89, 0.91]))
    assert board.rank(row_of(board, "b"), CE) == 1


@pytest.mark.parametrize("differs", [{"l0": 60.0}, {"d_sae": 128}, {"tokens": 2000}, {"trained": False}])
def test_rows_that_are_not_matched_are_not_ranked_together(differs):
    board = board_of(over_seeds("a", [0.9, 0.91, 0.92]), over_seeds("b", [0.5, 0.51, 0.53], **differs))
    assert board.rank(row_of(board, "b"), CE) is None


def test_l0_of_a_group_are_within_three_per_cent_and_cut_at_the_widest_gap():
    levels = (30.0, 30.2, 30.7, 31.0, 32.2, 60.0)
    board = board_of(*(over_seeds(str(l0), [0.9, 0.91, 0.92], l0=l0) for l0 in levels))
    groups = [[row.label for row in group] for group in board.groups]
    assert groups == [["30.0", "30.2"], ["30.7", "31.0"], ["32.2"], ["60.0"]], "31 is 3.3 % above 30"
    assert board.group(row_of(board, "32.2")) == [row_of(board, "32.2")]


def test_no_row_is_the_best_beside_a_better_one_of_the_same_l0_across_a_cut():
    levels = {"a": (30.0, 0.7), "b": (30.2, 0.6), "c": (30.7, 0.9), "d": (31.0, 0.8)}
    rows = [over_seeds(name, [ce, ce + 0.01 + l0 / 1e5, ce + 0.02], l0=l0) for name, (l0, ce) in levels.items()]
    board = board_of(*rows)
    assert [board.rank(row_of(board, label), CE) for label in "abcd"] == [1, 2, 1, 2]
    assert [label for label in "abcd" if board.is_best(row_of(board, label), CE)] == ["c"], "c is 2.3 % above a"


def test_only_rows_of_the_same_conditions_stand_beside_a_result():
    known = [made("temporal", when=1), made("topk"), made("stock:topk", context_size=64)]
    small = made("temporal", when=2, context_size=64)
    small["eval_result_unstructured"]["provenance"]["weight_hash"] = "temporal01"  # the same SAE
    assert [row.label for row in comparable_rows([small], known)] == ["stock:topk"]
    assert [row.label for row in comparable_rows([known[0]], [small, *known])] == ["topk"]


def test_what_stands_beside_results_just_asked_for():
    asked = over_seeds("mine", [0.9, 0.91])
    others = [
        *over_seeds("whole", [0.5, 0.6, 0.7]),
        made("whole", 1, 0.9, when=7),
        made("half", 0),
        made("other[window=2]", 0),
        made("other[window=2]", 1),
        *over_seeds("wide", [0.5, 0.6], d_sae=128),
        *over_seeds("long", [0.5, 0.6], tokens=2000),
        *over_seeds("elsewhere", [0.5, 0.6], context_size=64),
        *over_seeds("random", [0.1, 0.2], trained=False, tokens=0),
    ]
    found = {
        row.label: [
            result["eval_result_metrics"]["model_performance_preservation"]["ce_loss_score"]
            for result in row.all_results
        ]
        for row in comparable_rows(asked, others)
    }
    assert found == {"whole": [0.5, 0.9], "random": [0.1, 0.2]}


def test_what_is_not_known_is_matched_with_nothing():
    results = [*over_seeds("a", [0.9, 0.91]), *over_seeds("b", [0.5, 0.51])]
    for result in results:
        del result["eval_result_metrics"]["sparsity"]
    board = board_of(results)
    assert all(board.rank(row, CE) is None for row in board.rows)


def test_seeds_that_agree_have_an_interval():
    board = board_of(over_seeds("a", [0.9] * 3), over_seeds("b", [0.5, 0.51, 0.52]), over_seeds("c", [0.4] * 3))
    assert row_of(board, "a").number(CE) == pytest.approx((0.9, 0))
    assert [board.rank(row_of(board, label), CE) for label in "abc"] == [1, 2, 3]


def test_differences_without_spread_are_not_taken_for_certain():
    """One latent of 64 in each of three seeds: the metric is too coarse to scatter."""
    board = board_of(over_seeds("a", [0.9] * 3), over_seeds("b", [0.9 - 1 / 64] * 3))
    assert [board.rank(row, CE) for row in board.rows] == [1, 1]
    rounding = board_of(over_seeds("a", [0.1 + 0.2, 0.3, 0.7]), over_seeds("b", [0.3, 0.1 + 0.2, 0.7]))
    assert [rounding.rank(row, CE) for row in rounding.rows] == [1, 1]


def test_text_separates_boards():
    one, other = made("a"), made("b")
    other["eval_result_unstructured"]["provenance"]["text"] = "another"
    one["eval_result_unstructured"]["provenance"]["text"] = "a text"
    assert len(make_boards([one, other])) == 2


def test_another_recipe_is_another_kind_of_sae():
    old, new = made("a", 0, 0.1, when=1), made("a", 1, 0.2, when=2)
    old["eval_result_unstructured"]["provenance"]["kind"] = "older"
    new["eval_result_unstructured"]["provenance"]["kind"] = "newer"
    rows = board_of(old, new).rows
    assert {row.label: row.seeds for row in rows} == {"a": [1], "a #2": [0]}
    assert [row.label for row in rows if not row.has_other_recipe] == ["a"]


def test_l0_is_known_from_another_evaluation():
    probing = [
        r | {"eval_type_id": "sparse_probing", "eval_result_metrics": {"sae": {"sae_top_1_test_accuracy": 0.7}}}
        for r in over_seeds("a", [0.9, 0.91])
    ]
    board = select_evaluations(
        board_of(over_seeds("a", [0.9, 0.91]), over_seeds("b", [0.9, 0.91]), probing), ["sparse_probing"]
    )
    assert [(row.label, row.l0) for row in board.rows] == [("a", 30.0)]
    assert [metric.short for _, metric in board.shown] == ["accuracy, k = 1"]


def test_pareto_over_l0():
    board = board_of(
        made("sparse", ce=0.8, l0=10.0),
        made("dense", ce=0.9, l0=40.0),
        made("beaten", ce=0.7, l0=20.0),
        made("random", ce=0.99, l0=5.0, trained=False, tokens=0),
    )
    assert {row.label for row in board.rows if board.on_front(row, CE)} == {"sparse", "dense"}


def test_a_row_leaves_the_front_only_by_a_test_where_seeds_allow_one():
    near, far = [0.9, 0.93, 0.96], [0.93, 0.93, 0.92]
    board = board_of(over_seeds("a", near, l0=20.0), over_seeds("b", far, l0=30.0), over_seeds("c", [0.5, 0.51, 0.52]))
    assert {row.label for row in board.rows if board.on_front(row, CE)} == {"a", "b"}


def test_a_wide_interval_does_not_put_a_row_on_the_front_before_a_better_one():
    board = board_of(
        over_seeds("a", [0.900, 0.901, 0.902], l0=20.0),
        over_seeds("b", [0.89, 0.891, 0.8921], l0=20.0),
        over_seeds("c", [0.8, 0.9, 0.95], l0=20.0),
    )
    assert {row.label for row in board.rows if board.on_front(row, CE)} == {"a"}


@pytest.mark.parametrize("differs", [{"context_size": 64}, {"dataset": "other"}, {"llm_dtype": "bfloat16"}])
def test_results_made_under_other_conditions_are_on_another_board(differs):
    both = {"llm_dtype": "float32"}
    boards = make_boards([made("a", **both), made("b", **both), made("a", **{**both, **differs})])
    assert [[row.label for row in board.rows] for board in boards] == [["a", "b"], ["a"]]


def test_the_newest_of_two_results_of_one_sae_and_seed_counts():
    assert board_of(made("a", ce=0.1, when=1), made("a", ce=0.2, when=2)).rows[0].number(CE) == (0.2, None)


def test_one_label_for_two_kinds_of_sae_is_told_apart():
    old, new = made("a", ce=0.1, when=1), made("a", ce=0.2, when=2)
    old["sae_cfg_dict"]["metadata"]["training_architecture_details"] = {"coefficient": 0.1}
    board = board_of(old, new)
    assert {row.label: row.number(CE) for row in board.rows} == {"a": (0.2, None), "a #2": (0.1, None)}


def test_untrained_rows_stand_last_with_the_reason():
    board = board_of(made("random", ce=0.99, trained=False), made("a", ce=0.1))
    assert [row.label for row in board.rows] == ["a", "random"]
    text = to_markdown([board])
    assert "| *random* (untrained) |" in text
    assert "`random` is untrained: trained on 0 tokens." in text


def test_untrained_rows_of_one_reason_are_one_note():
    board = board_of(*(made(name, ce=0.9, trained=False) for name in ("random", "other")), made("a", ce=0.1))
    assert "`other`, `random` are untrained: trained on 0 tokens." in to_markdown([board])


def test_the_users_baselines_are_untrained_and_say_why():
    results, broken = read_results([BASELINES])
    assert not broken
    rows = {row.label: row for board in make_boards(results) for row in board.rows}
    assert rows["google/gemma-2-2b_layer_19_sae/custom_sae"].untrained == ["L0 is 0: no latent ever fires"]
    probing = rows["google/gemma-2-2b_layer_5_sae/custom_sae"].untrained
    assert probing == ["at chance: every SAE probe is within 0.02 of 0.5", "0 training steps"]


def test_saebench_s_minus_one_is_no_number():
    result = made("x", ce=-1)
    del result["eval_result_unstructured"]
    (row,) = board_of(result).rows
    assert row.number(CE) is None
    assert "-1" in row.why_missing(CE)
    assert row.why_missing(EV) == "not among its numbers"


def test_published_rows_are_ranked_with_their_like_and_name_their_source():
    results, _ = read_results([BASELINES])
    board = next(b for b in make_boards(results) if b.model == "pythia-160m-deduped")
    assert len(board.rows) == 126
    assert "SAEBench-Reliability" in (board.rows[0].source or "")
    assert all(row.training_tokens == 500_000_000 for row in board.rows)
    assert any(board.on_front(row, CE) for row in board.rows)


def test_old_results_without_newer_fields_load():
    result = made("old")
    for key in ("eval_result_unstructured", "sae_cfg_dict", "datetime_epoch_millis"):
        del result[key]
    (row,) = board_of(result).rows
    assert row.number(CE) == (0.9, None)
    assert row.d_sae is None


def write(root, results):
    for number, result in enumerate(results):
        path = root / "tiny" / "core" / "x" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return root


def test_broken_files_are_named_and_counted(tmp_path, capsys):
    write(tmp_path, [made("a")])
    (tmp_path / "cut.json").write_text('{"eval_type_id": "co')
    (tmp_path / "lines.jsonl").write_text(json.dumps(made("b")) + "\n[]\n")
    assert main(["leaderboard", "--results", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "cut.json: it is not JSON" in said.err
    assert "lines.jsonl, line 2 is not a result" in said.err
    assert "2 of 4 are no results" in said.err
    assert "│ a " in said.out
    assert "│ b " in said.out


@pytest.mark.parametrize(
    "change",
    [
        {"eval_type_id": []},
        {"datetime_epoch_millis": "now"},
        {"sae_cfg_dict": {"d_sae": "wide"}},
        {"sae_cfg_dict": {"hook_name": []}},
        {"eval_result_unstructured": {"not_trained_because": [1]}},
        {"eval_result_unstructured": {"not_a_number": "x"}},
        {"eval_result_unstructured": {"densities": {"never": "x"}}},
        {"eval_result_unstructured": {"provenance": {"seed": "0"}}},
        {"eval_result_unstructured": {"provenance": [1]}},
    ],
)
def test_what_is_not_of_the_shape_of_a_result_is_named_and_counted(tmp_path, capsys, change):
    (tmp_path / "good.json").write_text(json.dumps(made("a")))
    (tmp_path / "bad.json").write_text(json.dumps({**made("b"), **change}))
    markdown = tmp_path / "t.md"
    assert main(["leaderboard", "--results", str(tmp_path), "--markdown", str(markdown)]) == 1
    said = capsys.readouterr().err
    assert "bad.json is not a result of SAEBench: its" in said
    assert "1 of 2 are no results" in said
    assert "`a`" in markdown.read_text()


def test_odd_numbers_and_provenance_without_a_command_are_no_crash(tmp_path):
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    huge, bare = made("huge"), made("bare")
    huge["eval_result_metrics"]["sparsity"]["l0"] = 10**400
    bare["eval_result_unstructured"]["provenance"] = {"seed": 0}
    for result in (huge, bare):
        (tmp_path / f"{result['sae_lens_id']}.json").write_text(json.dumps(result))
    markdown = tmp_path / "t.md"
    assert main(["leaderboard", "--results", str(tmp_path), "--markdown", str(markdown)]) == 1
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path / "t.html")]) == 1
    assert "`huge` | - |" in markdown.read_text()


def test_results_of_an_evaluation_that_is_not_known_are_counted(tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"{number}.json").write_text(json.dumps(made("a", number) | {"eval_type_id": "absorption"}))
    (tmp_path / "core.json").write_text(json.dumps(made("a")))
    assert main(["leaderboard", "--results", str(tmp_path), "--csv", str(tmp_path / "t.csv")]) == 0
    assert "left out: 3 results of 'absorption'" in capsys.readouterr().err


def test_untrained_without_a_reason_is_untrained_all_the_same():
    result = made("a")
    result["eval_result_unstructured"] |= {"trained": False, "not_trained_because": []}
    assert row_of(board_of(result), "a").untrained == ["its result says so"]


def test_a_table_says_what_made_it_and_why_a_number_is_missing():
    probing = [
        made(label)
        | {
            "eval_type_id": "sparse_probing",
            "eval_result_metrics": {"sae": {f"sae_top_{k}_test_accuracy": 0.7 for k in ks}},
        }
        for label, ks in (("a", [1]), ("d", [1, 5]))
    ]
    text = to_markdown([board_of(made("a"), made("b\nc"), made("d"), probing)])
    assert "- `python -m eval_runners.core`, commit abc: core of" in text
    assert "- sparse_probing was not run for `b c`" in text
    assert "- no accuracy, k = 5 of `a`: not among its numbers" in text
    assert "| `b c` |" in text


def test_commands_that_differ_in_seeds_and_places_are_one():
    def by(command, commit, seed):
        result = made("a", seed=seed)
        result["eval_result_unstructured"]["provenance"] |= {"command": command, "commit": commit}
        return result

    text = to_markdown([board_of(
        by("python -m eval_runners suite --output one --seeds 2,10 --sae a", "abc", 2),
        by("python -m eval_runners suite --output one --seeds 2,10 --sae a", "abc", 10),
        by("python -m eval_runners suite --output 'my runs' --activations act --seeds 3 --sae a", "def", 3),
        by("python -m eval_runners suite --seeds 4 --sae a --train.k 7", "def", 4),
    )])  # fmt: skip
    assert "- `python -m eval_runners suite --seeds 2,3,10 --sae a`, commits abc, def: core of `a`" in text
    assert "- `python -m eval_runners suite --seeds 4 --sae a --train.k 7`, commit def: core of `a`" in text


def test_an_error_is_printed_with_a_digit_that_says_something():
    assert format_number((0.8419, 0.00031)) == "0.8419 ± 0.0003"
    assert format_number((0.8419, 0.0131)) == "0.842 ± 0.013"
    assert format_number((0.8419, 0.0000031)) == "0.84190 ± 0.00000"
    assert format_number((30.2, None)) == "30.2"


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    import os
    import threading

    (tmp_path / "r.json").write_text(json.dumps(made("a")))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_text()))
    reader.start()
    assert main(["leaderboard", "--results", str(tmp_path), "--csv", str(pipe)]) == 0
    reader.join(timeout=10)
    assert "core.ce_loss_score" in said[0]
    assert pipe.is_fifo()


def test_width_is_a_filter_and_no_other_recipe(tmp_path):
    for label, d_sae in (("a", 64), ("a[d_sae=128]", 128), ("a[window=2]", 64)):
        (tmp_path / f"{d_sae}-{len(label)}.json").write_text(json.dumps(made(label, d_sae=d_sae)))
    found = {}
    for words in (["--recipe"], ["--recipe", "--d-sae", "128"], ["--d-sae", "64"]):
        main(["leaderboard", "--results", str(tmp_path), "--json", str(tmp_path / "out"), *words])
        (board,) = json.loads((tmp_path / "out").read_text())
        found[" ".join(words)] = {row["sae"] for row in board["rows"]}
    assert found == {
        "--recipe": {"a", "a[d_sae=128]"},
        "--recipe --d-sae 128": {"a[d_sae=128]"},
        "--d-sae 64": {"a", "a[window=2]"},
    }


def test_results_of_some_seeds_alone_make_the_rows(tmp_path):
    for label, seed, ev in (("a", 0, 0.5), ("a", 2, 0.7), ("a", 3, 0.9), ("b", 0, 0.6)):
        (tmp_path / f"{label}{seed}.json").write_text(json.dumps(made(label, seed, ev=ev)))
    main(["leaderboard", "--results", str(tmp_path), "--json", str(tmp_path / "out"), "--seeds", "2,3"])
    ((row,),) = [board["rows"] for board in json.loads((tmp_path / "out").read_text())]
    assert (row["sae"], row["seeds"]) == ("a", [2, 3])
    assert row["metrics"]["core.explained_variance_corrected"]["value"] == pytest.approx(0.8)
    with pytest.raises(UsageError, match="no results of that kind"):
        main(["leaderboard", "--results", str(tmp_path), "--seeds", "9"])


def test_why_names_the_fields_that_differ(tmp_path, capsys):
    for label, window in (("temporal", 8), ("temporal[window=2]", 2)):
        result = made(label)
        result["sae_cfg_dict"]["metadata"]["training_architecture_details"] = {"window": window, "k": 30}
        (tmp_path / f"{window}.json").write_text(json.dumps(result))
    assert main(["leaderboard", "why", "temporal", "temporal[window=2]", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "window is 8 for temporal and 2 for temporal[window=2]" in said
    assert "k is" not in said
    with pytest.raises(UsageError, match="are one row"):
        main(["leaderboard", "why", "temporal", "temporal", "--results", str(tmp_path)])


def test_csv_and_json_say_everything(tmp_path):
    write(tmp_path / "r", [*over_seeds("a", [0.9, 0.91, 0.92]), *over_seeds("b[k=4]", [0.8, 0.81, 0.822])])
    argv = [
        "leaderboard",
        "--results",
        str(tmp_path / "r"),
        "--csv",
        str(tmp_path / "t.csv"),
        "--json",
        str(tmp_path / "t.json"),
    ]
    assert main(argv) == 0
    one, other = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert float(one["core.ce_loss_score"]) == pytest.approx(0.91)
    assert float(one["core.ce_loss_score ±"]) == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert (one["core.ce_loss_score rank"], other["core.ce_loss_score rank"]) == ("1", "2")
    assert (one["seeds"], one["commits"], one["commands"]) == ("0; 1; 2", "abc", "python -m eval_runners.core")
    (board,) = json.loads((tmp_path / "t.json").read_text())
    assert board["conditions"]["core"]["context_size"] == 32
    metrics = [row["metrics"] for row in board["rows"]]
    assert metrics[0]["core.ce_loss_score"]["rank"] == 1
    assert metrics[0]["core.ce_loss_score"]["best"] is True
    assert metrics[0]["core.ce_loss_score"]["front"] is True


def test_why(tmp_path, capsys):
    write(
        tmp_path,
        [
            *over_seeds("a", [0.9, 0.91, 0.92]),
            *over_seeds("b", [0.8, 0.81, 0.82]),
            made("c", context_size=64, l0=60.0, d_sae=8),
        ],
    )
    why = ["leaderboard", "why", "--results", str(tmp_path)]
    assert main([*why, "a", "b"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing: they are ranked together\n")
    assert "a minus b" in said
    assert "0.10000 ± 0.00000" in said
    assert main([*why, "a", "c"]) == 0
    said = capsys.readouterr().out
    for part in (
        "d_sae is 64 for a and 8 for c",
        "L0 is 30.0 for a and 60.0",
        "context_size is 32 here and 64 there",
        "they have 1 seed in common: a test needs 3",
    ):
        assert part in said
    with pytest.raises(UsageError, match="did you mean 'a'"):
        main([*why, "aa", "b"])


def test_keep_copies_what_the_table_needs(tmp_path, capsys):
    write(tmp_path / "r", [*over_seeds("a", [0.9, 0.91]), made("b")])
    assert main(["leaderboard", "--results", str(tmp_path / "r"), "--sae", "a", "--keep", str(tmp_path / "kept")]) == 0
    files = list((tmp_path / "kept").rglob("*.json"))
    assert {file.parent.relative_to(tmp_path / "kept").as_posix() for file in files} == {"tiny/core/a"}
    assert len(files) == 2
    assert all(json.loads(file.read_text())["eval_result_details"] == [] for file in files)
    assert main(["leaderboard", "--results", str(tmp_path / "kept"), "--sae", "a"]) == 0


def test_differences_to_a_baseline(tmp_path, capsys):
    write(tmp_path / "r", [*over_seeds("a", [0.9, 0.91]), made("b", context_size=64)])
    (tmp_path / "base.json").write_text(json.dumps(made("base", ce=0.8)))
    main(["leaderboard", "--results", str(tmp_path / "r"), "--baseline", str(tmp_path / "base.json")])
    said = capsys.readouterr().out
    assert "+0.105" in said
    assert "better" in said
    assert "b cannot be compared with base: context_size is 64 here and 32 there" in said
    (tmp_path / "near.json").write_text(json.dumps(made("near", ce=0.88)))
    main(["leaderboard", "--results", str(tmp_path / "r"), "--sae", "a", "--baseline", str(tmp_path / "near.json")])
    assert "within the interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--results", "nowhere"], "no folder 'nowhere'"),
        (["--evals", "corre"], "did you mean 'core'"),
        (["--check"], "--check goes with --readme"),
        (["--readme", "nowhere.md"], "cannot read nowhere.md"),
        (["--model", "sandbx"], "did you mean 'sandbox'"),
        (["--sae", "temporall"], "did you mean 'temporal'"),
        (["--evals", "core", "--l0", "3000"], "no results of that kind"),
    ],
)
def test_bad_options(argv, says):
    with pytest.raises(UsageError, match=says):
        main(["leaderboard", *argv])


@pytest.mark.parametrize("argv", [[], ["why", "a", "b"]])
def test_a_missing_folder_of_results_is_named(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"no folder results in {tmp_path}: go to where it is, or give --results"):
        main(["leaderboard", *argv])


def test_it_says_which_results_a_new_training_replaces(tmp_path, capsys):
    for when, digest in ((1, "old"), (2, "new")):
        result = made("a", when=when)
        result["eval_result_unstructured"]["provenance"]["weight_hash"] = digest
        (tmp_path / f"{digest}.json").write_text(json.dumps(result))
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    assert "newer results of the same seed replace those of a (seed 0)" in capsys.readouterr().err
    (tmp_path / "old.json").unlink()
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    assert "replace" not in capsys.readouterr().err


def test_no_torch():
    script = "import sys\nfrom eval_runners.__main__ import main\nmain(['leaderboard', '--csv', '/dev/null'])\nassert 'torch' not in sys.modules"
    script = script.replace("'--csv', '/dev/null'", "'--results', 'results/baselines'")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_no_two_columns_have_one_head():
    heads = [
        metric.short
        for name in ("core", "sparse_probing", "positional_consistency")
        for metric in metrics_of(name)
        if metric.short
    ]
    assert len(heads) == len(set(heads))
