"""A tree of latents: its code by hand, its gate, its saved form, and what evaluators make of it."""

from __future__ import annotations

import pytest
import torch
from conftest import evaluate
from sae_lens.saes.sae import TrainStepInput

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.gated.code import Tree
from sae_variants.gated.saved import TreeSAE, TreeSAEConfig
from sae_variants.synthetic.model import load_synthetic
from sae_variants.two_level.saved import NO_PARENT

D, S, K = 6, 20, 4


def build(**overrides):
    sae = sae_variants.build("tree", d_in=D, d_sae=S, seed=0, **{"k": K, **overrides})
    sae.is_ours = True
    return sae


def step(sae, x, number=1):
    return sae.training_forward_pass(TrainStepInput(x, {}, None, n_training_steps=number, is_logging_step=False))


def saved(d_in: int, d_sae: int, children: int) -> TreeSAE:
    """An SAE of which each row is an axis, and that has no bias and no refinement."""
    sae = TreeSAE(TreeSAEConfig(d_in=d_in, d_sae=d_sae, children=children, apply_b_dec_to_input=False))
    state = {name: torch.zeros_like(values) for name, values in sae.state_dict().items()}
    sae.load_state_dict({**state, "W_enc": torch.eye(d_in, d_sae), "W_dec": torch.eye(d_sae, d_in)})
    return sae


def test_the_indices_by_hand():
    tree = Tree(d_sae=10, children=3)  # two parents with three children each, and two parents without
    assert (tree.n_parents, tree.n_children) == (4, 6)
    assert tree.parent_S.tolist() == [NO_PARENT] * 4 + [0, 0, 0, 1, 1, 1]
    fires = tree.gate(torch.tensor([[0.0, 2.0, 1.0, 0.0]]))
    assert fires.tolist() == [[False, False, False, True, True, True]]


def test_the_code_by_hand():
    sae = saved(3, 3, children=2)  # the first axis is the parent of the others
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 3.0]])
    torch.testing.assert_close(sae.encode(x), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    with torch.no_grad():
        sae.W_dec[0] = torch.tensor([1.0, 1.5, 0.0])  # the parent explains 1.5 of the second axis
        sae.threshold[2] = 3.0
    torch.testing.assert_close(sae.encode(x[:1]), torch.tensor([[1.0, 0.5, 0.0]]))


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize(("refine", "ungated"), [(0, 0.0), (2, 0.0), (1, 0.5)])
def test_the_saved_sae_has_the_code_of_the_training_one(refine, ungated, normalize, tmp_path):
    sae = build(refine=refine, ungated=ungated, normalize_activations=normalize)
    for number in range(3):
        step(sae, torch.randn(32, D), number)
    assert (sae.thresholds_T2 > 0).all()
    batches = [torch.randn(2048, D) for _ in range(4)]
    sae.calibrate(batches)
    scale = 1.0 if normalize == "none" else 3.0
    if normalize != "none":
        sae.fold_activation_norm_scaling_factor(scale)
    sae.save_inference_model(tmp_path)
    loaded = sae_variants.load(tmp_path)
    assert type(loaded) is TreeSAE
    fires = loaded.encode(torch.cat(batches) / scale) > 0
    parents, children = (
        fires[:, part].sum(1).float().mean().item() for part in (loaded.tree.parents, loaded.tree.below)
    )
    assert parents == pytest.approx(K / 2, abs=0.02)
    assert children == pytest.approx(K / 2, abs=0.02)
    alone = fires[:, loaded.tree.below] & ~loaded.tree.gate(fires.float())
    assert alone.any() == (ungated > 0)


def test_a_gate_that_is_open_a_little_by_hand():
    sae = saved(3, 3, children=2)
    sae.cfg.ungated = 0.5
    with torch.no_grad():
        sae.threshold[1:] = 1.2
    x = torch.tensor([[0.0, 2.0, 3.0], [1.0, 2.0, 3.0]])  # without the parent, half of 2 is below the threshold
    torch.testing.assert_close(sae.encode(x), torch.tensor([[0.0, 0.0, 3.0], [1.0, 2.0, 3.0]]))


def test_parents_have_a_loss_of_their_own():
    x = torch.randn(32, D)
    with_loss, without = step(build(), x), step(build(parent_coefficient=0.0), x)
    parents_only = with_loss.losses["parent_mse_loss"]
    assert parents_only > with_loss.losses["mse_loss"]
    assert "parent_mse_loss" not in without.losses
    torch.testing.assert_close(with_loss.loss - without.loss, parents_only)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"children": 0}, "children must be at least 1"),
        ({"children": S}, f"below d_sae = {S}"),
        ({"parent_share": 1.0}, "parent_share must be above 0 and below 1"),
        ({"ungated": 1.5}, "ungated must be between 0 and 1, not 1.5"),
        ({"parent_coefficient": -1.0}, "parent_coefficient must not be negative"),
        ({"k": 12, "parent_share": 0.9}, "10.8 of 5 parents cannot fire"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        build(**fields)


def test_a_planted_tree_has_the_true_edges(tmp_path):
    """Features 0 and 1 are roots with three children each, which are the latents in the order of the tree."""
    from eval_runners.measures.true_features import Sample, count_firing
    from eval_runners.measures.true_tree import describe_tree

    branches = {"total_root_nodes": 2, "branching_factor": 3, "max_depth": 1, "mutually_exclusive_portion": 0.0}
    synthetic = {"num_features": 8, "hidden_dim": 8, "seed": 0, "hierarchy": branches}
    rates = {"generator_name": "linear", "max_prob": 0.4, "min_prob": 0.2}
    data = load_synthetic({**synthetic, "firing_probability": rates}, "cpu")
    data.model.feature_dict.feature_vectors.data = torch.eye(8)
    roots = data.model.hierarchy.roots
    order = [root.feature_index for root in roots]
    order += [child.feature_index for root in roots for child in root.children]
    sae = saved(8, 8, children=3)
    with torch.no_grad():
        sae.W_dec[:] = torch.eye(8)[order]
        sae.W_enc[:] = sae.W_dec.T
    counts = count_firing(sae.encode, sae.W_dec, data, Sample(64, 32, 0))
    found = describe_tree(sae, data, counts)
    assert found["edge_f1"] == found["parent_accuracy"] == found["ari"] == 1
    random = TreeSAE(sae.cfg)
    counts = count_firing(random.encode, random.W_dec, data, Sample(64, 32, 0))
    assert describe_tree(random, data, counts)["edge_f1"] < 1


def test_hierarchy_measures_children_against_their_parents(target, model):
    sae = saved(32, 32, children=3)
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = target.model_name, target.hook_name
    small = {"n_contexts": 8, "context_size": 32, "n_latents": 6, "contexts_per_latent": 3}
    values = evaluate("hierarchy", sae, target, model, **small).metrics
    assert values["information"]["parents"] == 8
    assert values["information"]["childless"] == 0
    assert values["information"]["best_child_bits"] > 0
    assert values["clustering"]["coactivation_learned"] > values["clustering"]["coactivation_shuffled"]
    assert values["causes"]["traced"] == 6
