"""Oracles: a latent that fires on a bigram is explained by that bigram, with precision and recall 1."""

from __future__ import annotations

import pytest
import torch
from conftest import evaluate, identity

from eval_runners.contract.registry import load_evaluator
from eval_runners.measures.sampled_latents import SampledLatents
from eval_runners.measures.token_patterns import (
    WILDCARD,
    build_trie,
    find_examples,
    find_pattern,
    make_last_activations,
    match_trie,
    pattern_text,
    precision_recall,
)

REPLACEMENTS = [90, 91, 92]


def fires_on(*last_tokens):
    """A latent that fires, with activation 2, on runs that end with these tokens; None is any."""

    def last(runs):
        return [
            2.0
            * (
                len(run) >= len(last_tokens)
                and all(w in (None, t) for w, t in zip(last_tokens[::-1], run[::-1], strict=False))
            )
            for run in runs
        ]

    return last


@pytest.mark.parametrize(
    ("run", "last_tokens", "pattern"),
    [
        ([1, 2, 9, 3, 7], (7,), (7,)),
        ([1, 2, 9, 3, 7], (3, 7), (3, 7)),
        ([1, 2, 3, 5, 7], (3, None, 7), (3, WILDCARD, 7)),
        ([1, 2, 9, 3, 7], (None, 7), (7,)),
        ([1, 2, 9, 3, 7], (3, None), (3, WILDCARD)),
    ],
    ids=["token", "bigram", "with a gap", "any token before it", "after a token"],
)
def test_patterns_of_known_latents(run, last_tokens, pattern):
    assert find_pattern(run, 2.0, fires_on(*last_tokens), REPLACEMENTS) == pattern
    assert find_pattern(run, 4.1, fires_on(*last_tokens), REPLACEMENTS) is None  # half of it is never reached


def test_wildcards_alone_are_no_pattern():
    assert find_pattern([1, 3, 7], 2.0, lambda runs: [2.0 for _ in runs], REPLACEMENTS) is None


def test_a_pattern_keeps_half_of_the_activation():
    def last(runs):  # 7 alone gives 0.9 of 2, with 3 before it 1.4, with 1 before that 2
        return [(run[-1] == 7) * (0.9 + 0.5 * (run[-2:-1] == [3]) + 0.6 * (run[-3:-1] == [1, 3])) for run in runs]

    assert find_pattern([1, 3, 7], 2.0, last, REPLACEMENTS) == (3, 7)
    assert find_pattern([1, 3, 7], 1.8, last, REPLACEMENTS) == (7,)


def test_a_trie_matches_what_ends_with_a_pattern():
    root = build_trie([(3, 7), (4, WILDCARD, 7), (8,)])
    ids = torch.tensor([[3, 7, 7, 8, 4, 1, 7, 3, 3], [7, 4, 7, 7, 1, 1, 1, 8, 7]])
    assert match_trie(root, ids).int().tolist() == [[0, 1, 0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1, 0]]
    assert not match_trie(build_trie([]), ids).any()


def test_scores_by_hand():
    predicted, truth = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 1]).bool()
    assert precision_recall(predicted, truth) == {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5}
    assert precision_recall(torch.zeros(4).bool(), truth) == {"precision": None, "recall": 0, "f1": 0}


def test_examples_end_where_a_latent_fires_most():
    ids = torch.arange(12).view(3, 4)
    acts = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])
    assert find_examples(ids, acts, n_examples=5, longest=2) == [([6, 7], 3.0), ([0, 1], 1.0)]
    assert find_examples(ids, acts, n_examples=1, longest=9) == [([4, 5, 6, 7], 3.0)]


def test_a_latent_of_a_bigram_is_explained_with_precision_and_recall_1(target, model, monkeypatch):
    from eval_runners.measures import sampled_latents, token_patterns

    torch.manual_seed(0)
    ids = torch.randint(20, 30, (40, 30))
    acts = torch.zeros(40, 30, 1)
    acts[:, 1:, 0] = 2.0 * ((ids[:, 1:] == 25) & (ids[:, :-1] == 21))
    monkeypatch.setattr(
        sampled_latents, "sample_latents", lambda *_, **__: SampledLatents(ids, [4], acts, torch.zeros_like(ids).bool())
    )
    monkeypatch.setattr(token_patterns, "make_last_activations", lambda *_: fires_on(21, 25))
    evaluation = evaluate("n2g", identity(target), target, model)
    for values in (evaluation.metrics["firing"], evaluation.metrics["strong"]):
        assert (values["precision"], values["recall"], values["f1"]) == (1, 1, 1)
    (row,) = load_evaluator("n2g").detail_rows(evaluation.output)
    assert row["patterns"] == " ".join(repr(model.tokenizer.decode([token])) for token in (21, 25))
    assert pattern_text((WILDCARD, 21), model.tokenizer).startswith("* ")


def test_nothing_is_predicted_for_special_tokens(target, model, monkeypatch):
    from eval_runners.measures import sampled_latents, token_patterns

    ids = torch.full((8, 6), 25)
    special = torch.zeros_like(ids).bool()
    special[:, 3] = True
    acts = 2.0 * (~special).float()[..., None]
    monkeypatch.setattr(sampled_latents, "sample_latents", lambda *_, **__: SampledLatents(ids, [4], acts, special))
    monkeypatch.setattr(
        token_patterns, "make_last_activations", lambda *_: lambda runs: [2.0 * (run[-1] == 25) for run in runs]
    )
    (row,) = evaluate("n2g", identity(target), target, model).unstructured["by_latent"]
    assert (row["firing precision"], row["firing recall"]) == (1, 1)


def test_patterns_come_from_the_first_half_only(target, model, monkeypatch):
    from eval_runners.measures import sampled_latents, token_patterns

    ids = torch.arange(5, 23).repeat(3)[:48].view(8, 6)
    ids[:4, 3], ids[4:, 3] = 25, 26
    acts = 2.0 * (ids >= 25).float()[..., None]
    monkeypatch.setattr(
        sampled_latents, "sample_latents", lambda *_, **__: SampledLatents(ids, [4], acts, torch.zeros_like(ids).bool())
    )
    monkeypatch.setattr(
        token_patterns, "make_last_activations", lambda *_: lambda runs: [2.0 * (run[-1] >= 25) for run in runs]
    )
    (row,) = evaluate("n2g", identity(target), target, model).unstructured["by_latent"]
    assert row["patterns"] == [repr(model.tokenizer.decode([25]))]
    assert (row["firing precision"], row["firing recall"]) == (None, 0)


def test_activations_of_runs_equal_those_in_the_text(target, model):
    from eval_runners.data.heldout import activations_of, heldout_tokens

    sae, ids = identity(target), heldout_tokens(target, model, 2, 16)
    last = make_last_activations(sae, target, model, 3)
    runs = [ids[0, 1:4].tolist(), ids[0, 1:9].tolist()]
    x = next(iter(activations_of(ids, target, model)))[0]
    expected = sae.encode(x)[0, [2, 7], 3].tolist()
    assert last(runs) == pytest.approx(expected, abs=1e-4)
