"""Detection and fuzzing: planted latents, controls, both judges, and scores computed by hand."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from conftest import evaluate, identity

from eval_runners.contract.registry import load_evaluator
from eval_runners.data import judges
from eval_runners.measures.explainers import SHOWN, ModelJudge, PatternJudge, tokens_of_latent
from eval_runners.measures.explanation_tests import (
    Excerpt,
    judge_latents,
    judge_shuffled,
    make_all_questions,
    make_questions,
    random_latents,
    scores_of,
)
from sae_variants.common.errors import UsageError

RED, RAIN = 7, 9
LENGTH, EXAMPLES, TESTS = 4, 3, 8

SMALL = {
    "n_contexts": 32,
    "context_size": 32,
    "n_latents": 4,
    "n_min": 1,
    "excerpt_tokens": 2,
    "n_tests": 4,
    "n_examples": 4,
}


@pytest.fixture
def planted():
    """Text of tokens 10 to 99 in which two words occur, and latents that fire on one of them each."""
    generator = torch.Generator().manual_seed(0)
    ids_CT = torch.randint(10, 100, (60, 16), generator=generator)
    for word in (RED, RAIN):
        ids_CT[torch.rand(ids_CT.shape, generator=generator) < 0.06] = word
    acts_CTP = torch.stack([(ids_CT == word).float() for word in (RED, RAIN)], -1)
    return ids_CT, acts_CTP, torch.zeros_like(ids_CT, dtype=torch.bool)


def asked_of(planted):
    return make_all_questions(*planted, LENGTH, EXAMPLES, TESTS, torch.Generator().manual_seed(0))


def pattern_judge(model):
    return PatternJudge(lambda place: [((RED, RAIN)[place],)], model.tokenizer)


def test_a_latent_for_one_word_is_found_and_with_the_other_s_label_it_is_not(planted, model):
    asked, judge = asked_of(planted), pattern_judge(model)
    rows = judge_latents(judge, asked, [3, 5], "latents")
    assert [row["latent"] for row in rows] == [3, 5]
    for row in rows:
        assert all(row[f"{measure}_{score}"] == 1 for measure in ("detection", "fuzzing") for score in ("f1", "auprc"))
    for row in judge_shuffled(judge, asked, rows):
        assert row["fuzzing_balanced_accuracy"] == pytest.approx(0.5, abs=0.1)  # the other word may be marked by chance
        assert row["fuzzing_f1"] < 0.3
        assert row["detection_f1"] < 0.6
    assert judge_shuffled(judge, asked[:1], rows[:1]) == []


def test_questions_show_the_first_half_and_test_on_the_second(planted):
    ids_CT, acts_CTP, special_CT = planted
    ids_CT = ids_CT.clone()
    ids_CT[30:] += 1000  # the second half of the contexts
    questions = make_questions(
        ids_CT, acts_CTP[..., 0], special_CT, LENGTH, EXAMPLES, TESTS, torch.Generator().manual_seed(0)
    )
    assert len(questions.examples) == EXAMPLES
    assert all(max(excerpt.ids) < 1000 for excerpt in questions.examples)
    assert all(any(excerpt.marked) for excerpt in questions.examples)
    for excerpts in questions.tests.values():
        assert len(excerpts) == len(questions.truth) == 2 * TESTS
        assert all(min(excerpt.ids) >= 1000 for excerpt in excerpts)
    for excerpt, fires in zip(questions.tests["fuzzing"], questions.truth, strict=True):
        assert any(excerpt.marked)
        assert fires == (1000 + RED in excerpt.ids)
    marked = [sum(excerpt.marked) for excerpt in questions.tests["fuzzing"]]
    assert set(marked[TESTS:]) == {-(-sum(marked[:TESTS]) // TESTS)}  # as many, rounded up, on those that are silent


def test_excerpts_with_special_tokens_and_latents_that_fire_too_seldom_or_too_often_are_left_out(planted):
    ids_CT, acts_CTP, special_CT = planted
    make = partial(
        make_questions, length=LENGTH, n_examples=EXAMPLES, n_tests=TESTS, generator=torch.Generator().manual_seed(0)
    )
    assert make(ids_CT, acts_CTP[..., 0], ~special_CT) is None
    assert make(ids_CT, torch.zeros_like(acts_CTP[..., 0]), special_CT) is None
    assert make(ids_CT, torch.ones_like(acts_CTP[..., 0]), special_CT) is None
    assert make(ids_CT, acts_CTP[..., 0], special_CT) is not None


def test_tests_come_from_all_activations_alike(planted):
    ids_CT, _, special_CT = planted
    acts_CT = torch.rand(ids_CT.shape, generator=torch.Generator().manual_seed(1))
    acts_CT = acts_CT * (
        torch.arange(ids_CT.numel()).reshape(ids_CT.shape) % 8 == 0
    )  # one token of every other excerpt
    questions = make_questions(ids_CT, acts_CT, special_CT, LENGTH, 10, 10, torch.Generator().manual_seed(0))
    rows = {
        tuple(row): float(act.max())
        for row, act in zip(ids_CT.reshape(-1, 4).tolist(), acts_CT.reshape(-1, 4), strict=True)
    }
    strengths = sorted(rows[tuple(excerpt.ids)] for excerpt in questions.tests["detection"][:10])
    assert all(abs(strength - (number + 0.5) / 10) < 0.15 for number, strength in enumerate(strengths))


def test_scores_are_those_computed_by_hand():
    found = scores_of([1.0, 0.6, 0.4, 0.0], [True, False, True, False])
    assert found == pytest.approx({"f1": 0.5, "balanced_accuracy": 0.5, "auprc": (1 + 2 / 3) / 2})
    assert scores_of([None, None, 0.4, 0.0], [True, False, True, False])["f1"] == 0
    assert set(scores_of([1.0, None], [True, False]).values()) == {None}


def test_random_latents_fire_as_often_as_those_that_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    like_CTP = (torch.rand(50, 20, 2, generator=generator) < torch.tensor([0.1, 0.3])).float()
    projected_CTP = torch.randn(50, 20, 2, generator=generator)
    special_CT = torch.zeros(50, 20, dtype=torch.bool)
    special_CT[:, 0] = True
    acts_CTP, thresholds_P = random_latents(projected_CTP, special_CT, like_CTP * ~special_CT[..., None])
    rates = [(acts[~special_CT] > 0).float().mean(0) for acts in (acts_CTP, like_CTP)]
    torch.testing.assert_close(*rates, atol=2e-3, rtol=0)
    assert not acts_CTP[special_CT].any()
    assert (thresholds_P > 0).all()


def canned(monkeypatch, tmp_path, replies):
    asked = []
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))

    def ask(url, model, messages, **options):
        asked.append(messages[-1]["content"])
        return replies(messages[-1]["content"])

    monkeypatch.setattr(judges, "ask", ask)
    return asked


def test_a_language_model_sees_marks_only_where_it_may_and_rates_each_excerpt(planted, model, tmp_path, monkeypatch):
    def replies(task):
        if "in one sentence" in task:
            return "a word"
        count = int(re.search(r"each of the (\d+) excerpts", task)[1])
        return f"Here: {[10] * count}"

    asked = canned(monkeypatch, tmp_path, replies)
    judge = ModelJudge(judges.EndpointJudge("http://localhost:1/v1", "m"), model.tokenizer)
    questions = asked_of(planted)
    (row, _) = judge_latents(judge, questions, [3, 5], "latents")
    assert row["explanation"] == "a word"
    assert row["detection_balanced_accuracy"] == row["fuzzing_balanced_accuracy"] == 0.5  # it says yes to everything
    assert row["fuzzing_f1"] == pytest.approx(2 / 3)
    kinds = {
        kind: [task for task in asked if kind in task]
        for kind in ("in one sentence", "at least one token", "are those")
    }
    assert all("<<" in task.partition("1. ")[2] for kind in ("in one sentence", "are those") for task in kinds[kind])
    assert not any("<<" in task.partition("1. ")[2] for task in kinds["at least one token"])
    assert len(kinds["are those"]) == 2 * -(-2 * TESTS // SHOWN)
    tokens = judge.endpoint.tokens
    again = ModelJudge(judges.EndpointJudge("http://localhost:1/v1", "m"), model.tokenizer)
    assert judge_latents(again, questions, [3, 5], "latents")[0] == row
    assert (again.endpoint.tokens, again.endpoint.reused) == (0, len(asked))
    assert 0 < tokens < 4 * 2 * tokens_of_latent(LENGTH, EXAMPLES, TESTS, ())


@pytest.mark.parametrize(
    "reply", ["no idea", "[1, 2]", '["a", "b", "c", "d", "e"]', "[1, 2, 3, 4, 99]", "[1, 2, 3, 4, true]", "[1, 2"]
)
def test_a_reply_without_ratings_counts_as_no_answer(reply, model, tmp_path, monkeypatch):
    canned(monkeypatch, tmp_path, lambda _: reply)
    judge = ModelJudge(judges.EndpointJudge("http://localhost:1/v1", "m"), model.tokenizer)
    assert judge.rate("a word", [Excerpt([3, 4], [True, False])] * 5, "detection") == [None] * 5
    assert judge.unread == 1
    assert judge.rate(judges.REFUSED, [Excerpt([3, 4], [True, False])], "detection") == [None]


def test_an_evaluation_has_both_controls_and_a_row_each(target, model):
    evaluation = evaluate("explanations", identity(target), target, model, prepare=True, **SMALL)
    assert evaluation.failures == []
    assert set(evaluation.metrics) == {"latents", "shuffled", "random"}
    groups = [row["group"] for row in evaluation.unstructured["explanations"]]
    assert groups.count("latents") == groups.count("shuffled") > 1
    assert groups.count("random") > 0
    alone = evaluate("explanations", identity(target), target, model, prepare=True, **SMALL, controls=())
    assert alone.metrics["latents"] == evaluation.metrics["latents"]
    assert set(alone.metrics["random"].values()) == {None}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"controls": ("shufled",)}, "shuffled"),
        ({"excerpt_tokens": 128}, "--excerpt-tokens 128 must be below --context-size 128"),
        ({"n_contexts": 8}, "--n-contexts 8 must be at least twice --n-min 20"),
        ({"model_name": "m"}, "--url and --model-name belong together"),
        ({"url": "http://x/v1", "model_name": "m", "budget": 9}, "more than --budget 9: lower --n-latents"),
    ],
)
def test_settings_that_cannot_work_are_refused_beforehand(target, settings, says, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "require_reachable", lambda url: None)
    evaluator = load_evaluator("explanations")
    with pytest.raises(UsageError, match=re.escape(says)):
        evaluator.prepare(target, evaluator.settings_class(**settings))


def test_a_judge_without_ratings_gives_no_result(target, model, tmp_path, monkeypatch):
    canned(monkeypatch, tmp_path, lambda _: "banana banana")
    monkeypatch.setattr(judges, "require_reachable", lambda url: None)
    endpoint = {"url": "http://localhost:1/v1", "model_name": "m"}
    with pytest.raises(UsageError, match="the replies of m hold no ratings: check --model-name"):
        evaluate("explanations", identity(target), target, model, prepare=True, **SMALL, **endpoint)
