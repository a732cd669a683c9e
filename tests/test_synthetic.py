"""Synthetic targets: their samples have the rates and half-lives that are asked for, SAEs train on them, and resume."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import tiny
from hub import running_hub
from test_train import killed_at

import sae_variants
from sae_variants.__main__ import main as variants_main
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target
from sae_variants.synthetic.config import read_synthetic
from sae_variants.synthetic.model import load_synthetic
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans
from sae_variants.training.trainer import make_trainer

SMALL = {
    "num_features": 40,
    "hidden_dim": 32,
    "seed": 1,
    "firing_probability": {"generator_name": "constant", "probability": 0.1},
}
TREES = {"hierarchy": {"total_root_nodes": 4, "branching_factor": 4, "max_depth": 1, "compensate_probabilities": True}}


def toml(value) -> str:
    """A table as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(part)}" for name, part in value.items()) + "}"
    return json.dumps(value)


def make_target(folder, table, train="k = 4\nd_sae = 64", name="mine"):
    (folder / f"{name}.toml").write_text(f"synthetic = {toml(table)}\n[train]\n{train}\n")
    return load_target(str(folder / f"{name}.toml"))


def test_samples_have_the_firing_rates_and_are_a_function_of_the_seed():
    data = load_synthetic(SMALL, "cpu")
    acts = torch.cat(list(data.features(200, 128, "a")))
    assert acts.shape == (200, 128, 40)
    assert (acts > 0).float().mean((0, 1)).sub(0.1).abs().max() < 0.01
    batches = data.features(200, 128, "a")
    torch.manual_seed(0)
    next(batches)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0))), "random state is kept"
    again, other = (torch.cat(list(load_synthetic(SMALL, "cpu").features(200, 128, seed))) for seed in ("a", "b"))
    assert torch.equal(acts, again)
    assert not torch.equal(acts, other)
    x = data.embed(acts[:2]).flatten(0, 1)
    expected = acts[:2].flatten(0, 1) @ data.directions_FD + data.model.feature_dict.bias
    torch.testing.assert_close(x, expected.detach())


def test_the_last_small_sample_is_kept(monkeypatch):
    data = load_synthetic(SMALL, "cpu")
    first = list(data.features(100, 128, "a"))
    again = list(data.features(100, 128, "a"))
    assert len(first) == 2
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert not any(a is b for a, b in zip(first, data.features(100, 128, "b"), strict=True))
    broken_off = next(data.features(100, 128, "c"))
    whole = list(data.features(100, 128, "c"))
    assert len(whole) == 2
    assert torch.equal(whole[0], broken_off)
    monkeypatch.setattr("sae_variants.synthetic.model.KEPT_BYTES", 1)
    large = list(data.features(100, 128, "a"))
    assert torch.equal(large[0], first[0])
    assert next(data.features(100, 128, "a")) is not large[0]


def test_half_lives_leave_the_rates_as_they_are_and_decide_the_autocorrelation():
    data = load_synthetic({**SMALL, "half_lives": [1, 64]}, "cpu")
    fires = (torch.cat(list(data.features(600, 128, "a"))) > 0).float()
    half_lives = data.half_lives_F
    assert half_lives.min() >= 1
    assert half_lives.max() <= 64
    assert fires.mean((0, 1)).sub(0.1).abs().max() < 0.03
    centred = fires - fires.mean((0, 1))
    for lag in (1, 8):
        found = (centred[:, lag:] * centred[:, :-lag]).mean((0, 1)) / centred.pow(2).mean((0, 1))
        assert found.sub(2 ** (-lag / half_lives)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("name", "has_trees"), [("synthetic", True), ("synthetic-flat", False), ("synthetic-sequence", False)]
)
def test_the_embedded_models_are_what_their_titles_say(name, has_trees):
    target = load_target(name)
    data = load_synthetic(target.synthetic, "cpu")
    acts = torch.cat(list(data.features(128, 128, "a"))).flatten(0, 1)
    assert (data.d_in, acts.shape[1]) == (128, 1024)
    assert float((acts > 0).sum(1).float().mean()) == pytest.approx(20, abs=2)
    assert (data.model.hierarchy is not None) == has_trees
    assert (acts > 0).any(0).float().mean() > 0.98


@pytest.mark.parametrize("name", ["temporal", "hierarchical", "frozen_decoder", "random"])
def test_saes_train_on_a_synthetic_target(name, tmp_path):
    target = make_target(tmp_path, {**SMALL, "half_lives": [2, 32]})
    plan = make_plan(name, target, tiny(name), tmp_path / "trained")
    train_plans([plan])
    sae = sae_variants.load(plan.sae_folder)
    assert sae.cfg.metadata.model_name == target.model_name
    assert target.model_name.startswith("mine-")
    x = load_synthetic(target.synthetic, "cpu").activations(8, 128, "test").flatten(0, 1)
    error = (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert name == "random" or error < 0.9


@pytest.mark.parametrize("name", ["hierarchical", "topk", "refined", "stock:batchtopk", "frozen_decoder", "random"])
def test_no_sae_starts_at_the_true_directions(name, tmp_path):
    # the model's directions are drawn from its seed; an SAE built from the same seed could draw the same numbers
    directions_FD = load_synthetic(SMALL, "cpu").directions_FD
    for seed in (0, 1, SMALL.get("seed", 0)):
        plan = make_plan(name, make_target(tmp_path, SMALL), {**tiny(name), "seed": seed}, tmp_path / "trained")
        sae = make_trainer(plan, directions_FD.shape[1], "cpu").sae
        rows_SD = getattr(sae, "W_dec_lower", sae.W_dec).detach()
        own = torch.nn.functional.normalize(rows_SD, dim=1) @ directions_FD[: len(rows_SD)].T
        n = min(len(rows_SD), len(directions_FD))
        assert own[:n, :n].diagonal().abs().mean() < 2 / directions_FD.shape[1] ** 0.5


def test_a_killed_training_goes_on_with_the_same_weights(tmp_path, monkeypatch):
    target = make_target(tmp_path, SMALL)
    broken, whole = (make_plan("stock:batchtopk", target, tiny("stock:batchtopk"), tmp_path / at) for at in "ab")
    train_plans([whole])
    killed_at(monkeypatch, 20, [broken], checkpoint_steps=8)
    train_plans([broken])
    first, second = (sae_variants.load(plan.folder).state_dict() for plan in (broken, whole))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_seeds_train_on_other_samples_and_names_follow_the_config(tmp_path):
    data = load_synthetic(SMALL, "cpu")
    numbers = torch.stack([context for context, _ in zip(data.contexts(9), range(4), strict=False)])
    assert not torch.equal(data.training_activations(numbers, 0), data.training_activations(numbers, 1))
    one, other = make_target(tmp_path, SMALL), make_target(tmp_path, {**SMALL, "seed": 2}, name="other")
    assert one.model_name.rpartition("-")[2] != other.model_name.rpartition("-")[2]


def test_a_published_model_is_downloaded_or_built(tmp_path, monkeypatch, capsys):
    from sae_lens.synthetic import SyntheticModel

    table = {**SMALL, "pretrained": "me/world"}
    monkeypatch.setattr("sae_variants.synthetic.model.LARGE", 40)
    built = load_synthetic({**table, "seed": 77}, "cpu")
    assert "building a synthetic model of 40 features in 32 dimensions" in capsys.readouterr().err
    built = load_synthetic(table, "cpu")
    assert built.origin.startswith("built from its config; cannot get the synthetic model me/world")
    SyntheticModel(load_synthetic({**SMALL, "seed": 9}, "cpu").model.cfg).save(tmp_path / "world")
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.repos["me/world"] = {path.name: path.read_bytes() for path in (tmp_path / "world").iterdir()}
        published = load_synthetic(table, "cpu")
    assert published.origin == "the Hub: me/world"
    assert not torch.equal(published.directions_FD, built.directions_FD)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_features": 10**9}, "lower num_features"),
        ({"hidden_dim": 1}, "hidden_dim in .* must be a whole number of at least 2, not 1"),
        ({"firing_probability": {"generator_name": "zipf"}}, "cannot be used: .*zipf"),
        ({"firing_probability": {"generator_name": "zipfian", "max_prob": 1.5}}, "cannot be used: .*max_prob"),
        ({"firing_probability": {"generator_name": "constant", "probability": 1.5}}, r"not in \(0, 1\]"),
        ({"seed": "x"}, "seed in .* must be a whole number"),
        ({"seed": 10**20}, "seed in .* must be a whole number from 0 to"),
        ({"pretrained": 5}, "pretrained in .* must be a name on the Hub, ORG/NAME, not 5"),
        ({"hierarchy": "yes"}, r"hierarchy in .* must be a table of its own, \[synthetic.hierarchy\], not 'yes'"),
        ({"firing_probability": 0.1}, "firing_probability in .* must be a table of its own"),
        ({"orthogonalization": {"num_steps": -5}}, "num_steps of orthogonalization in .* not -5"),
        ({"mean_firing_magnitudes": -3.0}, "mean firing magnitudes from -3 to -3: .* never fires"),
        ({"hidden_dims": 8}, "unknown field in .* 'hidden_dims': did you mean 'hidden_dim'"),
        ({"half_lives": [0, 4]}, r"half_lives in .* must be two numbers of tokens"),
        ({"half_lives": [1, 4], **TREES}, "has half_lives and hierarchy: remove hierarchy"),
        ({"hierarchy": {"total_root_nodes": 0}}, "cannot be used: total_root_nodes must be positive"),
        ({"hierarchy": {"total_root_nodes": 10**4}}, "no feature is left to be a child; lower total_root_nodes"),
    ],
)
def test_a_config_that_cannot_work_is_one_line(changes, says, tmp_path):
    target = make_target(tmp_path, {**SMALL, **changes})
    plan = make_plan("topk", target, tiny("topk"), tmp_path / "trained")
    with pytest.raises(UsageError, match=says) as raised:
        train_plans([plan])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "trained").exists()


def test_half_lives_without_end_are_refused():
    with pytest.raises(UsageError, match="half_lives in here must be two numbers of tokens"):
        read_synthetic({**SMALL, "half_lives": [1, math.inf]}, "here")


def test_a_target_is_synthetic_or_a_language_model(tmp_path):
    (tmp_path / "both.toml").write_text(f'model_name = "gpt2"\nsynthetic = {toml(SMALL)}\n')
    with pytest.raises(UsageError, match="has both model_name and synthetic"):
        load_target(str(tmp_path / "both.toml"))


def test_check_prints_what_a_synthetic_model_is(tmp_path, capsys):
    make_target(tmp_path, {**SMALL, "half_lives": [2, 16]})
    assert variants_main(["target", "check", str(tmp_path / "mine.toml")]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["model"].strip().endswith("built from its config: 40 features in 32 dimensions")
    assert float(lines["features of a token"]) == pytest.approx(4, abs=0.5)
    assert lines["half-lives"].strip().endswith(" tokens")
