"""Two levels: their phases, their losses by hand, and what is saved of them."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file
from test_train import killed_at, same

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.hierarchical import cosine_loss, group_loss
from sae_variants.ops.errors import squared_error
from sae_variants.registry.variants import find_variant
from sae_variants.training.job import Job
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans
from sae_variants.training.trainer import make_trainer
from sae_variants.training.windows import Batch
from sae_variants.two_level.saved import NO_PARENT, lower_level_of

TOGETHER = {
    "refine": 0, "start": "copies", "separate": False, "cosine_coefficient": 3.0, "group_coefficient": 0.1,
}  # fmt: skip
"""Two levels that train each other, with the terms for siblings."""


def build(**overrides):
    return sae_variants.build("hierarchical", d_in=6, d_sae=5, seed=0, **{"k": 2, **TOGETHER, **overrides})


def step(sae, acts, number=0):
    return sae.training_forward_pass(TrainStepInput(acts, {}, None, n_training_steps=number, is_logging_step=False))


def plan(target, root, **overrides):
    return make_plan("hierarchical", target, {**tiny("hierarchical"), **TOGETHER, **overrides}, root)


def test_cosine_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    parents = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    # cosines 1, -1 and 0.6
    assert cosine_loss(rows, parents, torch.tensor([0, 1, 0])).item() == pytest.approx((0 + 2 + 0.4) / 3)


def test_group_norm_by_hand():
    acts = torch.tensor([[3.0, 4.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    # group 0 is the first two, of norm 5; group 1 the third, of norm 2; group 2 has no child
    loss = group_loss(acts, torch.tensor([0, 0, 1]), 3)
    assert loss.item() == pytest.approx((2**0.5 * 5 + 2) / 2)
    loss.backward()
    assert acts.grad is not None
    torch.testing.assert_close(acts.grad[0], torch.tensor([2**0.5 * 0.6, 2**0.5 * 0.8, 1.0]) / 2)
    assert not acts.grad[1].any()  # no NaN where nothing fires


def test_l1_and_reconstructions_by_hand():
    sae = build(
        sparsity="l1", l1_coefficient=0.5, lower_l1_coefficient=0.25, lower_coefficient=2, upper_coefficient=3,
        latent_coefficient=4,
    )  # fmt: skip
    x = torch.randn(8, 6)
    losses = step(sae, x).losses
    rows = sae.W_dec_lower / sae.W_dec_lower.norm(dim=1, keepdim=True)
    f = torch.relu((x @ sae.W_enc_lower) * sae.W_dec_lower.norm(dim=1))
    up = sae.W_links @ rows
    g = torch.relu((f @ sae.W_enc_upper) * up.norm(dim=1))
    f_hat = (g / up.norm(dim=1)) @ sae.W_links
    expected = {
        "lower_mse_loss": 2 * squared_error(x, f @ rows),
        "lower_l1_loss": 0.25 * f.sum(1).mean(),
        "mse_loss": 3 * squared_error(x, f_hat @ rows),
        "l1_loss": 0.5 * g.sum(1).mean(),
        "latent_mse_loss": 4 * squared_error(f, f_hat),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_squared_error_is_summed_over_dimensions_and_averaged_over_tokens():
    assert squared_error(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [0.0, 3.0]])).item() == pytest.approx(7)


@pytest.mark.parametrize(
    ("field", "loss"),
    [
        ("lower_coefficient", "lower_mse_loss"), ("upper_coefficient", "mse_loss"),
        ("latent_coefficient", "latent_mse_loss"), ("cosine_coefficient", "cosine_loss"),
        ("group_coefficient", "group_loss"), ("aux_loss_coefficient", "lower_aux_loss"),
        ("aux_loss_coefficient", "upper_aux_loss"), ("l1_coefficient", "l1_loss"),
        ("lower_l1_coefficient", "lower_l1_loss"),
    ],
)  # fmt: skip
def test_every_term_is_switched_off_by_one_field(field, loss):
    settings = {
        "sparsity": "l1", "progressive": False, "curriculum": False, "lower_coefficient": 1.0, "upper_coefficient": 1.0,
        "latent_coefficient": 1.0, "cosine_coefficient": 1.0, "group_coefficient": 1.0, "aux_loss_coefficient": 1.0,
        "l1_coefficient": 1.0, "lower_l1_coefficient": 1.0, "total_steps": 10, "dead_after_steps": 1,
    }  # fmt: skip
    found = []
    for value in (1.0, 0.0):
        sae = build(**{**settings, field: value})
        sae.lower_silent_L[:3] = sae.upper_silent_U[:2] = 9
        found.append(step(sae, torch.randn(8, 6), number=9).losses)
    gone = {"lower_aux_loss", "upper_aux_loss"} if "aux" in loss else {loss}
    assert loss in gone
    assert found[0].keys() - found[1].keys() == gone
    assert found[1].keys() <= found[0].keys()


def test_aux_by_hand():
    sae = build(sparsity="l1", progressive=False, dead_after_steps=1)
    sae.lower_silent_L[4] = 9
    x = torch.randn(8, 6)
    with torch.no_grad():
        lower = sae.lower(x)
        found = sae._aux("lower", lower, x, sae.lower_silent_L)["lower_aux_loss"]
        written = lower.pre[:, 4:5] * lower.rows[4]
        expected = squared_error(x - lower.out, written) / 3  # one dead latent of the d_in / 2 = 3 asked for
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sparsity": "l1", "l1_coefficient": 1.0, "lower_l1_coefficient": 1.0}, "must be below l1_coefficient"),
        ({"sparsity": "l1", "l1_coefficient": 1.0, "lower_l1_coefficient": 2.0}, "must be below l1_coefficient"),
        ({"k": 4, "lower_k": 4}, "must be above k"),
        ({"lower_k": 21}, "at most the 20"),
        ({"lower_share": 0.7, "upper_share": 0.4}, "nor more than 1 together"),
        ({"group_coefficient": -1.0}, "must not be negative"),
        ({"upper_learning_rate": 0.0}, "upper_learning_rate"),
        ({"separate": True, "cosine_coefficient": 1.0}, "cosine_coefficient needs separate=false"),
        (
            {"separate": True, "cosine_coefficient": 0.0, "group_coefficient": 1.0},
            "group_coefficient needs separate=false",
        ),
        ({"separate": True, "upper_share": 0.4}, "upper_share needs separate=false"),
        ({"separate": True, "upper_learning_rate": 1.0}, "upper_learning_rate needs separate=false"),
        ({"topk_threshold_lr": 0.0}, "topk_threshold_lr"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations"),
        ({"sparsity": "l2"}, "sparsity"),
        ({"expansion": 0}, "expansion"),
        ({"joint_learning_rate": 0.0}, "joint_learning_rate"),
    ],
)
def test_what_cannot_be_is_refused(fields, says):
    with pytest.raises(UsageError, match=says):
        build(**fields)


def test_equal_sparsity_is_allowed_where_it_is_asked_for():
    build(sparsity="l1", l1_coefficient=1.0, lower_l1_coefficient=1.0, progressive=False)
    build(k=4, lower_k=4, progressive=False)


def test_phases_go_by_shares_of_the_steps():
    sae = build(total_steps=10, lower_share=0.4, upper_share=0.3)
    assert [sae.cfg.phase(number) for number in range(10)] == [1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {build(total_steps=10, curriculum=False).cfg.phase(number) for number in range(10)} == {3}
    assert build().cfg.phase(0) == 3  # nobody knows the steps


def trained(target, tmp_path, until, **overrides):
    """A trainer's job after so many of its 32 steps, phases ending at 13 and 22."""
    made = plan(target, tmp_path, **{"lower_share": 0.4, "upper_share": 0.3, **overrides})
    job = Job(made, make_trainer(made, 32, "cpu"))
    torch.manual_seed(1)
    for _ in range(until):
        job.step(Batch(torch.randn(256, 32), torch.zeros(256, dtype=torch.bool), torch.arange(256)))
    return job


def state(job):
    return {name: value.clone() for name, value in job.trainer.sae.state_dict().items()}


LOWER = ("W_enc_lower", "b_enc_lower", "W_dec_lower", "b_dec", "lower_silent_L", "activity_L")
UPPER = ("W_enc_upper", "b_enc_upper", "W_links", "b_links", "upper_silent_U")


def test_the_lower_level_is_unchanged_to_the_bit_while_the_upper_trains_alone(target, tmp_path):
    job = trained(target, tmp_path, 13)
    assert job.trainer.sae.cfg.phase(13) == 2
    before = state(job)
    for _ in range(9):
        job.step(Batch(torch.randn(256, 32), torch.zeros(256, dtype=torch.bool), torch.arange(256)))
    after = state(job)
    assert job.trainer.sae.cfg.phase(22) == 3
    assert all(torch.equal(before[name], after[name]) for name in LOWER)
    assert before["thresholds"][0] == after["thresholds"][0]
    assert [name for name in UPPER[:4] if torch.equal(before[name], after[name])] == []
    job.step(Batch(torch.randn(256, 32), torch.zeros(256, dtype=torch.bool), torch.arange(256)))
    joint = state(job)
    assert [name for name in (*LOWER[:4], *UPPER[:4]) if torch.equal(after[name], joint[name])] == []


def test_the_upper_level_is_untouched_while_the_lower_trains_alone(target, tmp_path):
    fresh, later = (state(trained(target, tmp_path, until)) for until in (0, 13))
    assert all(torch.equal(fresh[name], later[name]) for name in UPPER)


def test_upper_latents_begin_as_copies_of_the_lower_ones_that_write_most(target, tmp_path):
    job = trained(target, tmp_path, 13)
    sae = job.trainer.sae
    sae._copy_most_active()
    x = torch.randn(64, 32)
    with torch.no_grad():
        lower = sae.lower(x)
        upper = sae.upper(lower)
    chosen = sae.activity_L.topk(64).indices
    torch.testing.assert_close(upper.rows, lower.rows[chosen])
    torch.testing.assert_close(upper.pre, lower.acts[:, chosen])


@pytest.mark.parametrize(
    "off",
    [
        {"upper_coefficient": 0.0}, {"lower_coefficient": 0.0}, {"cosine_coefficient": 0.0}, {"group_coefficient": 0.0},
        {"aux_loss_coefficient": 0.0}, {"sparsity": "l1", "l1_coefficient": 0.0},
        {"sparsity": "l1", "lower_l1_coefficient": 0.0}, {"curriculum": False}, {"upper_share": 0.0}, {"lower_share": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_part_can_be_left_out_of_a_whole_training(target, tmp_path, off):
    made = plan(target, tmp_path, **off)
    train_plans([made])
    sae = sae_variants.load(made.folder)
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert len(sae.parent_L.unique()) > 1


def test_without_an_upper_phase_upper_latents_begin_as_copies_all_the_same(target, tmp_path):
    job = trained(target, tmp_path, 13, upper_share=0.0)
    sae = job.trainer.sae
    chosen = sae.activity_L.topk(64).indices
    job.step(Batch(torch.randn(256, 32), torch.zeros(256, dtype=torch.bool), torch.arange(256)))
    assert sae.parent_L[chosen].tolist() == list(range(64))


def test_parents_are_fixed_when_both_levels_begin_to_train(target, tmp_path):
    job = trained(target, tmp_path, 22)
    assert (job.trainer.sae.parent_L == NO_PARENT).all()
    wanted = job.trainer.sae.parents()
    for _ in range(3):
        job.step(Batch(torch.randn(256, 32), torch.zeros(256, dtype=torch.bool), torch.arange(256)))
        assert torch.equal(job.trainer.sae.parent_L, wanted)


def test_the_parent_is_the_upper_latent_that_writes_most():
    sae = build()
    with torch.no_grad():
        sae.W_dec_lower.copy_(torch.cat([torch.eye(6), -torch.eye(6), torch.eye(6), torch.eye(6)[:2]]))
        sae.W_links.zero_()
        sae.W_links[0, 0], sae.W_links[1, 0], sae.W_links[1, 1], sae.W_links[2, 2] = 1.0, 1.0, 0.2, -1.0
        sae.W_links[3, 3], sae.W_links[4, 4] = 1.0, 1.0
    sae.activity_U += torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0])
    assert sae.parents()[:5].tolist() == [1, 1, 2, 3, 4]


def test_the_learning_rate_is_scaled_for_the_step_alone(target, tmp_path):
    job = trained(target, tmp_path, 14, upper_learning_rate=0.5)
    seen = []
    optimizer = job.trainer.optimizer
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    scheduled = optimizer.param_groups[0]["lr"]
    job.step(Batch(torch.randn(256, 32), torch.zeros(256, dtype=torch.bool), torch.arange(256)))
    assert seen == [scheduled * 0.5]
    assert "scheduled_lr" not in optimizer.param_groups[0]


@pytest.mark.parametrize("at", [5, 15, 27])
def test_a_killed_run_resumes_in_any_phase(target, tmp_path, monkeypatch, at):
    whole, broken = (plan(target, tmp_path / name) for name in ("whole", "broken"))
    train_plans([whole])
    killed_at(monkeypatch, at, [broken], checkpoint_steps=2)
    train_plans([broken], checkpoint_steps=2)
    for part in ("", "lower"):
        a, b = (load_file(made.folder / part / "sae_weights.safetensors") for made in (whole, broken))
        assert same(a, b)


@pytest.mark.parametrize("sparsity", ["batchtopk", "l1"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_both_levels_are_saved_exactly(tmp_path, sparsity, apply_b_dec_to_input):
    sae = build(sparsity=sparsity, apply_b_dec_to_input=apply_b_dec_to_input)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        sae.parent_L.copy_(torch.arange(20) % 5)
        sae.fold_activation_norm_scaling_factor(2.5)
        sae.save_inference_model(tmp_path)
        x = torch.randn(16, 6)
        upper, lower = sae_variants.load(tmp_path), sae_variants.load(tmp_path / "lower")
        level = sae.lower(x)
        above = sae.upper(level)
        assert lower.cfg.architecture() == "jumprelu"
        assert upper.parent_L.tolist() == (torch.arange(20) % 5).tolist()
        torch.testing.assert_close(lower_level_of(upper).encode(x), lower.encode(x))
        torch.testing.assert_close(lower_level_of(upper).decode(lower.encode(x)), lower.decode(lower.encode(x)))
        torch.testing.assert_close(upper.W_dec, upper.W_links @ lower.W_dec)
        if sparsity == "l1":  # BatchTopK looks at the whole batch, what is saved has a threshold
            torch.testing.assert_close(lower.encode(x), level.acts)
            torch.testing.assert_close(lower.decode(level.acts), level.out)
            torch.testing.assert_close(upper.encode(x), above.acts)
        torch.testing.assert_close(upper.decode(above.acts), above.out)


def test_folding_the_scale_of_the_input_changes_nothing_but_units():
    sae = build(sparsity="l1")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        x = torch.randn(16, 6)
        before = sae.decode(sae.encode(x))
        sae.fold_activation_norm_scaling_factor(4.0)
        torch.testing.assert_close(sae.decode(sae.encode(x / 4)), before / 4)


def test_an_upper_latent_that_writes_nothing_is_no_nan(tmp_path):
    sae = build(sparsity="l1")
    sae.W_links.data[2] = 0.0
    step(sae, torch.randn(8, 6)).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters() if parameter.grad is not None)
    sae.save_inference_model(tmp_path)
    assert all(parameter.isfinite().all() for parameter in sae_variants.load(tmp_path).parameters())


def test_parents_survive_half_precision(tmp_path):
    sae = sae_variants.build("hierarchical", d_in=4, d_sae=700, expansion=1, k=2, lower_k=3, dtype="bfloat16")
    sae.parent_L.copy_(torch.arange(700).flip(0))
    sae.save_inference_model(tmp_path)
    assert sae_variants.load(tmp_path).parent_L.tolist() == list(range(700))[::-1]


def test_both_levels_come_from_one_folder_and_one_training(target, tmp_path):
    from eval_runners.harness.find_sae import locate_all, locate_name, resolve_requests

    names = ["hierarchical", "hierarchical:lower"]
    found = locate_all(resolve_requests(names, target, tiny("hierarchical"), trained=tmp_path), "cpu")
    assert [one.label.partition("[")[0] for one in found] == names
    assert found[1].folder == found[0].folder / "lower"
    assert found[0].weight_hash != found[1].weight_hash
    assert [one.load("cpu").cfg.d_sae for one in found] == [64, 256]
    assert locate_name(str(found[1].folder)).label.startswith("hierarchical:lower-")


def test_a_recipe_gives_the_lower_level_its_width(target):
    assert make_plan("hierarchical", target).settings.d_sae * 4 == target.train["d_sae"]


def test_a_misspelt_part_is_named():
    with pytest.raises(UsageError, match="hierarchical:lower"):
        find_variant("hierarchical:lowr")


def test_snapshots_are_the_sae_at_that_step(target, tmp_path):
    kept, plain = plan(target, tmp_path / "kept"), plan(target, tmp_path / "plain")
    train_plans([plain])
    train_plans([kept], snapshots=(0.5, 1.0))
    train_plans([plain], snapshots=(0.5,))  # was trained without
    half, end, late = kept.snapshot(0.5), kept.snapshot(1.0), plain.snapshot(0.5)
    assert same(*(load_file(folder / "sae_weights.safetensors") for folder in (half, late)))
    assert same(*(load_file(folder / "sae_weights.safetensors") for folder in (end, plain.folder)))
    assert not same(*(load_file(folder / "sae_weights.safetensors") for folder in (half, end)))
