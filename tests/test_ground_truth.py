"""Oracles of the comparison with true features: known SAEs get the values that theory says."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import linear_sae, tiny
from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
from test_leaderboard import BASELINES
from test_synthetic import SMALL, make_target

from eval_runners.__main__ import main
from eval_runners.commands import evaluate as eval_command
from eval_runners.contract.contract import Context
from eval_runners.contract.registry import load_evaluator
from eval_runners.leaderboard.boards import make_boards
from eval_runners.measures import nearest as matching
from eval_runners.measures import true_features
from eval_runners.measures.feature_persistence import auroc, rate_matched
from eval_runners.measures.true_tree import (
    NONE,
    FoundTree,
    TrueTree,
    correlated_tree,
    group_agreement,
    score_tree,
    true_tree,
)
from eval_runners.store.read import conditions_of, read_results
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target
from sae_variants.synthetic.model import load_synthetic
from sae_variants.two_level.saved import TwoLevelSAE, TwoLevelSAEConfig

F, D = 24, 32
TREES = {"total_root_nodes": 4, "branching_factor": 3, "max_depth": 1, "compensate_probabilities": True}
TABLE = {
    "num_features": F,
    "hidden_dim": D,
    "bias": False,
    "mean_firing_magnitudes": 2.0,
    "firing_probability": {"generator_name": "linear", "max_prob": 0.3, "min_prob": 0.05},
}


def load(**more):
    """A synthetic model whose features are the first axes, so that a linear SAE can be perfect."""
    data = load_synthetic({**TABLE, **more}, "cpu")
    data.model.feature_dict.feature_vectors.data = torch.eye(F, D)
    return data


def score(sae, data, target):
    evaluator = load_evaluator("ground_truth")
    settings = evaluator.settings_class(n_contexts=64, context_size=64, probe_contexts=16)
    return evaluator.evaluate(sae, target, settings, Context(None, "cpu", None, data)).values


@pytest.fixture
def target(tmp_path):
    return make_target(tmp_path, TABLE)


def dictionary(target, rows):
    """An SAE of these decoder rows, each of which reads the direction that it writes."""
    return linear_sae(target, rows.T.clone(), rows.clone())


def test_published_figures_stand_beside_results_of_the_published_benchmark():
    """A change of the target's config gives it another name; then these figures are of another model."""
    results, _ = read_results([BASELINES])
    target = load_target("synth-sae-bench-16k")
    (board,) = [board for board in make_boards(results) if board.model == target.model_name]
    assert board.hook_name == target.hook_name
    assert all(conditions_of(result)["evaluator_version"] is None for result in results)  # any version's neighbours
    (f1,) = [column for column in board.columns if column.key == "ground_truth.f1"]
    numbers = {row.label: row.number(f1) for row in board.rows}
    labels = ("SynthSAEBench/Matryoshka L0=25", "SynthSAEBench/BatchTopK L0=25", "logistic probe")
    assert numbers == {label: (pytest.approx(f), None) for label, f in zip(labels, (0.88, 0.82, 0.97), strict=True)}
    recipe = target.train["d_sae"], target.train["training_tokens"]
    assert all((row.d_sae, row.training_tokens) == recipe for row in board.rows if row.results)


def test_the_true_dictionary_scores_one_on_all(target):
    data = load(hierarchy=TREES)
    found = score(dictionary(target, torch.eye(F, D)), data, target)
    for name in ("mcc", "f1", "precision", "recall", "uniqueness", "shrinkage"):
        assert found[f"recovery.{name}"] == pytest.approx(1, abs=1e-4), name
    assert found["recovery.explained_variance"] == pytest.approx(1, abs=1e-4)
    assert (found["recovery.dead"], found["features.f1_all"]) == (0, 1)
    assert found["recovery.l0"] == pytest.approx(found["recovery.true_l0"])
    assert found["ceiling.f1"] > 0.99
    for key in ("rate", "strength"):
        assert all(found[f"features.recall_{key}_{tenth}"] == 1 for tenth in range(1, 11))
    # a child fires only where its parent does, and more often than by chance only with its own parent and siblings
    assert found["tree.edge_f1"] == found["tree.parent_accuracy"] == 1


@pytest.mark.parametrize("width", [16, 200])
def test_the_numbers_are_those_of_saelens(target, width, monkeypatch):
    """In one part, and a context at a time with the best matching in sparse form, as very wide SAEs are scored."""
    data, generator = load(half_lives=[1, 8]), torch.Generator().manual_seed(0)
    rows = torch.randn(width, D, generator=generator)
    rows[3] = 0
    sae = dictionary(target, rows)
    sae.W_enc.data, sae.b_enc.data = sae.W_enc.data / D, torch.full((width,), -0.2)
    acts_NF = torch.cat(list(data.features(64, 64, "evaluation", 0))).flatten(0, 1)

    class Sampler:
        def sample(self, batch_size):
            assert batch_size == len(acts_NF)
            return acts_NF

    theirs = eval_sae_on_synthetic_data(sae, data.model.feature_dict, Sampler(), len(acts_NF))
    expected = {
        "mcc": theirs.mcc,
        "f1": theirs.classification.f1_score,
        "precision": theirs.classification.precision,
        "recall": theirs.classification.recall,
        "uniqueness": theirs.uniqueness,
        "explained_variance": theirs.explained_variance,
        "shrinkage": theirs.shrinkage,
        "dead": theirs.dead_latents / width,
        "l0": theirs.sae_l0,
        "true_l0": theirs.true_l0,
    }
    found = score(sae, data, target)
    assert {name: found[f"recovery.{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(true_features, "LATENTS_AT_ONCE", 64 * width)
    monkeypatch.setattr(matching, "COSINES_AT_ONCE", 5 * F)
    monkeypatch.setattr(matching, "WIDE", 0 if width > F else 4)
    in_parts = score(sae, data, target)
    assert in_parts == {
        name: value if value is None else pytest.approx(value, rel=1e-5) for name, value in found.items()
    }


def test_a_rotated_dictionary_is_at_chance(target):
    data = load()
    rotations = [torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(i)))[0] for i in range(6)]
    scores = [score(dictionary(target, rotation[:F]), data, target) for rotation in rotations]
    # the best matching of 24 random directions in 32 dimensions: about .36, far from 1
    assert all(found["recovery.mcc"] == pytest.approx(0.36, abs=0.05) for found in scores)
    assert all(found["recovery.f1"] < 0.5 for found in scores)


def test_a_duplicated_feature_lowers_uniqueness_by_its_share(target):
    rows = torch.cat([torch.eye(F, D), torch.eye(3, D)])
    found = score(dictionary(target, rows), load(), target)
    assert found["recovery.uniqueness"] == pytest.approx(F / (F + 3))
    assert found["recovery.mcc"] == pytest.approx(1, abs=1e-4)


def two_levels(parents) -> TwoLevelSAE:
    """Lower latents are the features; upper latents are the roots, each firing where its own lower latent does."""
    sae = TwoLevelSAE(TwoLevelSAEConfig(d_in=D, d_sae=4, d_lower=F, apply_b_dec_to_input=False))
    sae.W_enc_lower.data, sae.W_dec_lower.data = torch.eye(D, F), torch.eye(F, D)
    sae.W_enc_upper.data, sae.W_dec.data = torch.eye(F, 4), torch.eye(4, D)
    sae.parent_digits_3L.data[0] = parents.float()
    return sae


def test_a_planted_tree_is_found(target):
    data = load(hierarchy=TREES)
    tree = true_tree(data.model.hierarchy, F)
    assert (tree.parent_F != NONE).sum() == 12
    parents = torch.where(tree.root_F >= 0, tree.root_F, 0)  # a root's own latent is its copy, no edge
    parents[tree.root_F < 0] = torch.arange(4).repeat(2)[: int((tree.root_F < 0).sum())]
    found = score(two_levels(parents), data, target)
    assert found["tree.parent_accuracy"] == 1
    assert found["tree.edge_recall"] == 1
    wrong = score(two_levels((parents + 1) % 4), data, target)
    assert wrong["tree.parent_accuracy"] == wrong["tree.edge_f1"] == 0


def test_edges_by_hand():
    truth = TrueTree(torch.tensor([NONE, 0, 0, 1, NONE]), torch.tensor([0, 0, 0, 0, NONE]))
    # edges found: 0>1 right, 0>3 wrong (1 is its parent), 4>2 wrong, 1>1 a copy
    found = FoundTree(torch.tensor([1, 3, 2, 1]), torch.tensor([0, 0, 4, 1]), torch.tensor([0, 0, 1, 2]))
    scores = score_tree(found, truth)
    assert scores["edge_precision"] == pytest.approx(1 / 3)
    assert scores["edge_recall"] == pytest.approx(1 / 3)
    assert scores["edge_f1"] == pytest.approx(1 / 3)
    assert scores["parent_accuracy"] == pytest.approx(1 / 4)
    assert group_agreement(torch.tensor([4]), torch.tensor([0]), truth) is None


def test_a_latent_that_fires_everywhere_is_no_parent_of_flat_latents():
    # 0 fires on all ten tokens, 1 on the first four, 2 on two of these, 3 on others
    fires_NS = torch.zeros(10, 4)
    fires_NS[:, 0], fires_NS[:4, 1], fires_NS[:2, 2], fires_NS[6:7, 3] = 1, 1, 1, 1
    tree = correlated_tree(fires_NS.T @ fires_NS, 10, torch.tensor([10, 11, 12, 13]))
    assert (tree.child_E.tolist(), tree.parent_E.tolist(), tree.group_E.tolist()) == ([12], [11], [1])


def test_slow_latents_that_hold_long_lived_features_have_an_auroc_of_one(target):
    data = load(half_lives=[1, 64])
    order = data.half_lives_F.argsort(descending=True)
    sae = dictionary(target, torch.eye(F, D)[order])
    sae.cfg.metadata.training_architecture = "temporal_consistency"
    sae.cfg.metadata.training_architecture_details = {"slow_fraction": 0.25}
    found = score(sae, data, target)
    assert found["persistence.auroc"] == found["persistence.rate_matched_auroc"] == 1
    assert found["persistence.slow_longest_cosine"] == pytest.approx(1)
    assert found["persistence.measured_auroc"] > 0.9
    backwards = dictionary(target, torch.eye(F, D)[order.flip(0)])
    backwards.cfg.metadata.training_architecture = "temporal_consistency"
    backwards.cfg.metadata.training_architecture_details = {"slow_fraction": 0.25}
    assert score(backwards, data, target)["persistence.auroc"] == 0


def test_the_rate_matched_group_has_the_rates_of_the_group():
    rates = torch.tensor([0.5, 0.1, 0.49, 0.11, 0.3])
    group, alive = torch.tensor([True, True, False, False, False]), torch.ones(5, dtype=torch.bool)
    assert rate_matched(rates, group, alive).tolist() == [False, False, True, True, False]
    assert auroc(rates, group, alive) == pytest.approx(3 / 6)
    assert auroc(rates, alive, alive) is None


def test_an_sae_that_never_fires_is_untrained(target):
    evaluator = load_evaluator("ground_truth")
    settings = evaluator.settings_class(n_contexts=8, context_size=16, probe_contexts=4)
    zero = linear_sae(target, torch.zeros(D, 8), torch.zeros(8, D))
    found = evaluator.evaluate(zero, target, settings, Context(None, "cpu", None, load()))
    assert "L0 is 0: no latent ever fires" in found.failures


def test_the_command_trains_scores_and_is_refused_where_there_is_no_truth(tmp_path, capsys):
    make_target(tmp_path, SMALL)
    where = [
        "--target",
        str(tmp_path / "mine.toml"),
        "--trained",
        str(tmp_path / "trained"),
        "--output",
        str(tmp_path / "runs"),
    ]
    train = [f"--train.{key}={value}" for key, value in tiny("stock:batchtopk").items()]
    small = ["--n-contexts", "16", "--probe-contexts", "8"]
    assert main(["ground_truth", "--sae", "stock:batchtopk", *where, *train, *small]) == 0
    (path,) = (tmp_path / "runs").rglob("*.json")
    result = json.loads(path.read_text())
    assert result["eval_result_metrics"]["recovery"]["l0"] == pytest.approx(4, rel=0.2)
    assert result["eval_result_unstructured"]["model_origin"] == "built from its config"
    with pytest.raises(UsageError, match=r"ground_truth needs features that are known.*give --target synthetic"):
        main(["ground_truth", "--sae", "topk", "--target", "sandbox"])
    with pytest.raises(UsageError, match=r"--n-contexts 3 of --context-size 128 are 384 tokens.*give at least 1,000"):
        main(["ground_truth", "--sae", "topk", *where, "--n-contexts", "3"])
    with pytest.raises(UsageError, match="alpha_dynamics is for SAEs with a balance"):  # on either
        eval_command.main("alpha_dynamics", ["--sae", "stock:batchtopk", *where])
    with pytest.raises(UsageError, match="core needs a language model, and mine is synthetic"):
        eval_command.main("core", ["--sae", "topk", *where])
