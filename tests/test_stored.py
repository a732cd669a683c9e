"""Kept activations: the numbers of the language model, once, whatever happens to their files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import CONTEXTS_PER_PASS, hook_activations
from sae_variants.language_model.load import load_model
from sae_variants.language_model.stored import StoredActivations, target_activations
from sae_variants.training import source as source_module
from sae_variants.training.plan import make_plan
from sae_variants.training.source import open_source
from sae_variants.training.train import train_plans


@pytest.fixture(scope="module")
def model(target):
    return load_model(target.model_name, "cpu", target.dtype)


@pytest.fixture
def computed(monkeypatch):
    """Numbers of contexts that the language model reads."""
    import sae_variants.language_model.stored as stored

    counts, original = [], stored.hook_activations

    def counting(*args):
        compute = original(*args)

        def function(ids_CT):
            counts.append(len(ids_CT))
            return compute(ids_CT)

        return function

    monkeypatch.setattr(stored, "hook_activations", counting)
    return counts


def contexts(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 50, (n, 8), generator=torch.Generator().manual_seed(seed))


def test_the_numbers_are_those_of_the_model_and_are_computed_once(target, model, tmp_path, computed):
    ids_CT = contexts(CONTEXTS_PER_PASS + 9)
    expected = hook_activations(model, target.hook_name)(ids_CT)
    store = StoredActivations(tmp_path, target, model)
    assert torch.equal(store(ids_CT), expected)
    assert computed == [CONTEXTS_PER_PASS, 9]
    order = torch.randperm(len(ids_CT))
    for again in (store, StoredActivations(tmp_path, target, model)):
        assert torch.equal(again(ids_CT[order]), expected[order])
        assert torch.equal(again(ids_CT[[3, 3, 70]]), expected[[3, 3, 70]])
    assert sum(computed) == len(ids_CT)


def test_only_what_is_missing_is_added_and_another_process_is_seen(target, model, tmp_path, computed):
    first, second = StoredActivations(tmp_path, target, model), StoredActivations(tmp_path, target, model)
    first(contexts(5))
    second(contexts(5))  # its index is older than the shard
    assert computed == [5]
    both = torch.cat([contexts(5), contexts(4, seed=1)])
    assert torch.allclose(first(both), hook_activations(model, target.hook_name)(both), atol=1e-5)
    assert computed == [5, 4]


def test_other_models_hooks_and_data_types_have_their_own_folder(target, model, tmp_path):
    one = StoredActivations(tmp_path, target, model)
    other = StoredActivations(tmp_path, replace(target, hook_name="blocks.0.hook_resid_pre"), model)
    assert one.folder != other.folder
    assert json.loads((one.folder / "key.json").read_text())["hook_name"] == target.hook_name
    assert StoredActivations(tmp_path, target, model, "bfloat16")(contexts(3)).dtype == torch.bfloat16


@pytest.mark.parametrize("fault", ["cut", "changed", "no header", "foreign", "no checksum"])
def test_a_damaged_shard_is_named_and_computed_again(target, model, tmp_path, capsys, computed, fault):
    ids_CT = contexts(6)
    expected = StoredActivations(tmp_path, target, model)(ids_CT)
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if fault == "cut":
        content = content[:-10]
    elif fault == "changed":
        content[-1] ^= 1
    elif fault == "no header":
        content = bytearray(b"nothing")
    else:
        from safetensors import safe_open
        from safetensors.torch import save

        with safe_open(path, "pt") as shard:
            notes = {"contexts": shard.metadata()["contexts"]} if fault == "no checksum" else None
        content = bytearray(save({"acts": expected}, notes))
    path.write_bytes(content)
    assert torch.equal(StoredActivations(tmp_path, target, model)(ids_CT), expected)
    assert f"warning: {path} is damaged" in capsys.readouterr().err
    assert computed == [6, 6]
    assert torch.equal(StoredActivations(tmp_path, target, model)(ids_CT), expected)
    assert computed == [6, 6]


@pytest.mark.parametrize("is_open", [False, True])
def test_a_shard_with_another_in_its_place_is_named_and_computed_again(
    target, model, tmp_path, capsys, computed, is_open
):
    first, second = contexts(6), contexts(4, seed=1)
    reader = StoredActivations(tmp_path, target, model) if is_open else None
    store = StoredActivations(tmp_path, target, model)
    expected = [store(first), store(second)]
    one, other = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    one.write_bytes(other.read_bytes())
    found = reader or StoredActivations(tmp_path, target, model)
    assert torch.equal(found(second), expected[1])
    assert torch.equal(found(first), expected[0])
    assert f"warning: {one} is damaged: it holds other contexts than its name says" in capsys.readouterr().err
    assert computed == [6, 4, 4]


def test_a_training_has_the_same_weights_and_the_next_one_needs_no_pass(target, tmp_path, computed):
    from conftest import tiny

    kept = replace(target, activations=tmp_path / "kept")
    plans = [make_plan("topk", to, tiny("topk"), tmp_path / where) for to, where in ((target, "a"), (kept, "b"))]
    for plan in plans:
        train_plans([plan])
    weights = [(plan.folder / "sae_weights.safetensors").read_bytes() for plan in plans]
    assert weights[0] == weights[1]
    passes = len(computed)
    assert passes
    train_plans([make_plan("topk", kept, {**tiny("topk"), "seed": 1}, tmp_path / "b")])
    assert len(computed) == passes


def test_a_training_that_does_not_fit_is_refused_before_it_begins(target, tmp_path, monkeypatch, computed):
    from conftest import tiny

    kept = replace(target, activations=tmp_path)
    plan = make_plan("topk", kept, tiny("topk"), tmp_path / "trained")
    monkeypatch.setattr(StoredActivations, "bytes_free", 100)
    with pytest.raises(UsageError, match=r"GB would be added, but the disk of .* has 0.0 GB left"):
        train_plans([plan])
    assert not computed


def test_a_training_adds_what_it_says_and_makes_no_buffer_that_nobody_uses(target, tmp_path, monkeypatch, computed):
    from conftest import tiny

    kept = replace(target, activations=tmp_path / "kept")
    plan = make_plan("topk", kept, {**tiny("topk"), "training_tokens": 1024, "d_sae": 48}, tmp_path)
    stream = open_source(plan, "cpu").stream
    wanted = stream.buffers_of(plan.settings.steps) * stream.buffer_contexts
    different = len({tuple(ids_T.tolist()) for ids_T in itertools.islice(stream.contexts(), wanted)})
    size = wanted * stream.context_size * 32 * 4  # d_in = 32, of 4 bytes
    monkeypatch.setattr(StoredActivations, "bytes_free", size - 1)
    with pytest.raises(UsageError, match="GB would be added"):
        train_plans([plan])
    monkeypatch.setattr(StoredActivations, "bytes_free", size)
    train_plans([plan])
    assert sum(computed) == different == wanted
    tensors = [load_file(path)["acts"] for path in tmp_path.joinpath("kept").rglob("*.safetensors")]
    assert sum(acts_CTD.nbytes for acts_CTD in tensors) == size


def test_only_contexts_of_the_training_count_as_there(target, model, tmp_path, monkeypatch, computed):
    from conftest import tiny

    kept = replace(target, activations=tmp_path / "kept")
    first, second = (make_plan("topk", kept, {**tiny("topk"), "seed": seed}, tmp_path / "a") for seed in (0, 1))
    StoredActivations(tmp_path / "kept", target, model)(contexts(200))
    monkeypatch.setattr(StoredActivations, "bytes_free", 100)
    with pytest.raises(UsageError, match="GB would be added"):
        train_plans([first])
    assert sum(computed) == 200
    with monkeypatch.context() as patch:
        patch.setattr(StoredActivations, "bytes_free", 10**12)
        train_plans([first])
    train_plans([second])  # all of it is there
    assert second.is_trained


def test_a_full_disk_is_one_line(target, model, tmp_path, monkeypatch):
    import safetensors.torch

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UsageError, match=r"cannot keep activations in .*: No space left on device; give another"):
        StoredActivations(tmp_path, target, model)(contexts(2))
    assert not list(tmp_path.rglob("*.partial"))


def test_an_error_of_the_thread_that_reads_ahead_is_raised(target, tmp_path):
    from conftest import tiny

    kept = replace(target, activations=tmp_path)
    source = open_source(make_plan("topk", kept, tiny("topk"), tmp_path), "cpu")
    broken = replace(source.stream, contexts=lambda: iter(()))
    assert broken.ahead_on == "cpu"
    with pytest.raises(UsageError, match="the text is shorter than one context"):
        next(broken.batches())


@pytest.mark.parametrize(
    ("device", "cores", "is_kept", "expected"),
    [("cpu", 4, False, True), ("cpu", 3, False, False), ("cpu", 2, True, True), ("cuda:1", 2, False, True)],
)
def test_buffers_are_made_ahead_where_that_costs_no_step(
    device, cores, is_kept, expected, target, tmp_path, monkeypatch
):
    """Steps use two cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(source_module, "usable_cores", lambda: cores)
    assert source_module.is_made_ahead(replace(target, activations=tmp_path if is_kept else None), device) == expected


def test_workers_on_one_host_share_its_cores(monkeypatch):
    alone = source_module.usable_cores()
    monkeypatch.setenv("SAE_VARIANTS_NEIGHBOURS", "4")
    assert source_module.usable_cores() == alone / 4


def test_evaluators_read_what_is_kept(target, model, tmp_path, computed):
    from eval_runners.data.heldout import heldout_activations

    kept = replace(target, activations=tmp_path)
    expected = [acts_CTD for acts_CTD, _ in heldout_activations(target, model, 6, 16)]
    computed.clear()
    for _ in range(2):
        found = [acts_CTD for acts_CTD, _ in heldout_activations(kept, model, 6, 16)]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert sum(computed) == 6


def test_without_a_store_there_is_none(target, model):
    assert not isinstance(target_activations(target, model), StoredActivations)
