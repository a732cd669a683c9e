"""One stream for many, the same weights alone, and the same weights after a kill."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file

import sae_variants
from sae_variants.commands import train as train_command
from sae_variants.common.errors import UsageError
from sae_variants.common.files import backup_of, claim_of, claimed, partial_of
from sae_variants.common.worker import WORKER
from sae_variants.language_model.target import choose_target, load_target
from sae_variants.training import sharing as sharing_module
from sae_variants.training import train as train_module
from sae_variants.training.job import Job
from sae_variants.training.plan import make_plan
from sae_variants.training.settings import MOST_SEED
from sae_variants.training.sharing import split_by_memory
from sae_variants.training.train import TrainingFailed, train_plans
from sae_variants.training.trainer import make_trainer


def plan(name, target, root, **overrides):
    return make_plan(name, target, {**tiny(name), **overrides}, root)


def weights(made):
    return load_file(made.folder / "sae_weights.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


NAMES = [
    "temporal",
    "hierarchical",
    "stock:batchtopk",
    "stock:matryoshka_batchtopk",
    "stock:standard",
    "stock:topk",
    "random",
]


def test_several_from_one_stream_equal_each_alone(target, tmp_path):
    together = [plan(name, target, tmp_path / "together") for name in NAMES]
    train_plans(together)
    for made in together:
        alone = plan(made.name, target, tmp_path / "alone")
        train_plans([alone])
        assert same(weights(made), weights(alone)), made.name


class Killed(Exception):
    pass


def killed_at(monkeypatch, step_number: int, plans, checkpoint_steps: int) -> None:
    """Trains until that many SAE steps are done, then dies; training works again afterwards."""
    step, count = Job.step, iter(range(1000))

    def dies(job, batch):
        if next(count) == step_number:
            raise Killed
        step(job, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Job, "step", dies)
        with pytest.raises(Killed):
            train_plans(plans, checkpoint_steps=checkpoint_steps)


@pytest.mark.parametrize("name", ["stock:batchtopk", "hierarchical"])
def test_what_is_saved_is_the_same_to_the_byte_in_every_process(target, tmp_path, name):
    made = plan(name, target, tmp_path)
    train_plans([made])
    configs = list(made.folder.rglob("cfg.json"))
    assert configs
    for config in configs:
        text = config.read_text()
        assert text == json.dumps(json.loads(text), sort_keys=True)


@pytest.mark.parametrize("at", [3, 7, 11])
def test_a_killed_run_resumes_to_the_same_weights(target, tmp_path, monkeypatch, at):
    names = ["temporal", "stock:standard"]
    whole = [plan(name, target, tmp_path / "whole") for name in names]
    train_plans(whole, checkpoint_steps=2)

    broken = [plan(name, target, tmp_path / "broken") for name in names]
    # after the first SAE of that step, before the second
    killed_at(monkeypatch, at * len(names) + 1, broken, checkpoint_steps=2)
    assert not any(made.is_trained for made in broken)
    assert all(made.checkpoint.exists() for made in broken)
    train_plans(broken, checkpoint_steps=2)
    for a, b in zip(whole, broken, strict=True):
        assert same(weights(a), weights(b)), a.name
        assert not b.checkpoint.exists()


def test_a_kill_while_a_checkpoint_is_written_loses_no_checkpoint(target, tmp_path, monkeypatch):
    made = plan("temporal", target, tmp_path)
    killed_at(monkeypatch, 5, [made], checkpoint_steps=2)
    # as if killed between the two renames, with half a new checkpoint on disk
    made.checkpoint.rename(backup_of(made.checkpoint))
    partial_of(made.checkpoint).mkdir()
    started, resumed = Job.step, []
    monkeypatch.setattr(Job, "step", lambda job, batch: resumed.append(job.at) or started(job, batch))
    train_plans([made], checkpoint_steps=2)
    assert resumed[0] == 4
    assert not list(made.folder.parent.glob("*.checkpoint*"))
    whole = plan("temporal", target, tmp_path / "whole")
    train_plans([whole])
    assert same(weights(made), weights(whole))


def test_ctrl_c_in_the_middle_of_a_step_costs_no_bit(target, tmp_path, monkeypatch):
    from sae_lens.training.sae_trainer import SAETrainer

    broken, whole = (plan("temporal", target, tmp_path / name) for name in ("broken", "whole"))
    train_plans([whole])
    step, count = SAETrainer._train_step, iter(range(1000))

    def interrupted(self, **kwargs):
        output = step(self, **kwargs)
        if next(count) == 6:
            raise KeyboardInterrupt
        return output

    monkeypatch.setattr(SAETrainer, "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_plans([broken], checkpoint_steps=3)
    monkeypatch.setattr(SAETrainer, "_train_step", step)
    train_plans([broken], checkpoint_steps=3)
    assert same(weights(whole), weights(broken))


def test_a_finished_sae_is_kept_when_the_others_are_killed(target, tmp_path, monkeypatch):
    short, long = (plan("temporal", target, tmp_path, training_tokens=tokens) for tokens in (1024, 4096))
    killed_at(monkeypatch, 14, [short, long], checkpoint_steps=50)
    assert short.is_trained
    assert not long.is_trained


def test_a_broken_checkpoint_is_named(target, tmp_path):
    made = plan("temporal", target, tmp_path)
    state = made.checkpoint / "state"
    state.mkdir(parents=True)
    (state / "trainer_state.pt").write_bytes(b"half")
    with pytest.raises(UsageError, match=r"the checkpoint .* cannot be read .*: remove it"):
        train_plans([made])


@pytest.mark.parametrize("checkpoint_steps", [2, 1000])
def test_a_full_disk_is_named_and_leaves_nothing_half(target, tmp_path, checkpoint_steps):
    import resource

    made = plan("temporal", target, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(UsageError, match="cannot write the SAE to"):
            train_plans([made], checkpoint_steps=checkpoint_steps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.partial"))
    assert not made.is_trained


def test_a_window_that_does_not_fit_makes_the_stream_fit(target, tmp_path):
    settings = {k: v for k, v in tiny("temporal").items() if k != "stream_window"}
    for window in (3, 5, 16):
        made = make_plan("temporal", target, {**settings, "window": window}, tmp_path)
        assert made.settings.stream_window % window == 0
        assert made.settings.batch_tokens % window == 0
    train_plans([made])
    assert made.is_trained


def test_the_seed_changes_the_weights(target, tmp_path):
    a, b = (plan("temporal", target, tmp_path, seed=seed) for seed in (0, 1))
    assert a.folder != b.folder
    train_plans([a, b])
    assert not same(weights(a), weights(b))


def test_what_is_trained_is_not_trained_again(target, trained, monkeypatch):
    made = plan("temporal", target, trained)
    assert made.is_trained
    monkeypatch.setattr(train_module, "_train_group", lambda *a: pytest.fail("trained again"))
    train_plans([made])


def test_it_learns_and_says_what_it_did(target, tmp_path, text_file):
    made = plan("temporal", target, tmp_path, training_tokens=40_960)
    train_plans([made])
    record = json.loads((made.folder / "training.json").read_text())
    assert record["trained_tokens"] == 40_960
    assert record["settings"]["seed"] == 0
    sae = sae_variants.load(made.folder)
    assert sae.cfg.metadata.training_tokens == 40_960
    assert sae.cfg.metadata.hook_name == target.hook_name
    for file in made.folder.iterdir():
        content = file.read_bytes()
        assert str(text_file.parent).encode() not in content, f"{file.name} holds a path of this machine"
        assert str(tmp_path).encode() not in content


def test_random_learns_nothing_but_its_threshold(target, tmp_path):
    made = plan("random", target, tmp_path)
    train_plans([made])
    sae = sae_variants.load(made.folder)
    norms = sae.W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, norms[:1].expand(64))
    assert sae.cfg.metadata.training_tokens == 0
    assert (sae.threshold > 0).all()
    fresh = sae_variants.build("random", d_in=32, d_sae=64, seed=0)
    cosines = torch.nn.functional.cosine_similarity(sae.W_dec, fresh.W_dec)
    torch.testing.assert_close(cosines, torch.ones(64))


def test_divergence_ends_with_a_name_and_no_result(target, tmp_path):
    made = plan("stock:standard", target, tmp_path, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"stock:standard\[.*diverged at step \d+.*--learning-rate"):
        train_plans([made])
    assert not made.is_trained


def test_one_that_diverges_does_not_hold_up_the_others(target, tmp_path):
    lost, made = plan("stock:standard", target, tmp_path, learning_rate=1e30), plan("temporal", target, tmp_path)
    with pytest.raises(TrainingFailed) as failed:
        train_plans([lost, made])
    assert list(failed.value.failures) == [lost.folder]
    assert made.is_trained


def test_what_cannot_be_built_does_not_hold_up_the_others(target, tmp_path):
    lost, made = plan("pca", target, tmp_path, k=32, d_sae=80), plan("temporal", target, tmp_path)
    lost.fields["k"] = 40  # more components than d_in
    with pytest.raises(TrainingFailed, match="there are no 40 components of 32 dimensions"):
        train_plans([lost, made])
    assert made.is_trained


def test_what_another_process_trains_is_waited_for(target, tmp_path, capsys):
    ours, theirs = plan("temporal", target, tmp_path), plan("temporal", target, tmp_path, seed=1)
    train_plans([theirs])
    trained = theirs.folder.rename(tmp_path / "elsewhere")
    with ThreadPoolExecutor() as pool, claimed(theirs.folder):
        training = pool.submit(train_plans, [theirs, ours])
        while not ours.is_trained:  # what is free comes first
            assert not training.done()
            time.sleep(0.01)
        while "is being trained by" not in (shown := capsys.readouterr().out):
            assert not training.done()
            time.sleep(0.01)
        trained.rename(theirs.folder)
    training.result(timeout=60)
    assert f"is being trained by {socket.gethostname()} (process {os.getpid()}): waiting for it" in shown
    assert not list(tmp_path.rglob("*.claim"))


def test_what_a_killed_process_claimed_is_taken_over(target, tmp_path):
    made = plan("temporal", target, tmp_path)
    claim = f"""
import os, pathlib
from sae_variants.common.files import claimed
with claimed(pathlib.Path({str(made.folder)!r})):
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", claim], check=False)
    assert claim_of(made.folder).exists()
    train_plans([made])
    assert made.is_trained
    assert not claim_of(made.folder).exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("learning_rate", "fast"), ("d_sae", "wide"), ("seed", 1.5), ("autocast", "maybe"), ("training_tokens", 10.5)],
)
def test_settings_have_their_type(target, tmp_path, setting, value):
    with pytest.raises(UsageError, match=f"{setting} must be "):
        plan("temporal", target, tmp_path, **{setting: value})
    assert plan("temporal", target, tmp_path, training_tokens=1e4).settings.training_tokens == 10_000


def test_as_many_train_at_once_as_half_of_the_free_memory_holds(target, tmp_path, monkeypatch):
    plans = [plan("temporal", target, tmp_path, seed=0, k=k) for k in (2, 3, 4)]
    one = 4 * 2 * 32 * 64 * 4  # four copies of two matrices 32 x 64 of 4 bytes
    for room, parts in ((2 * one, [1, 1, 1]), (4 * one, [2, 1]), (1, [1, 1, 1]), (1e12, [3])):
        monkeypatch.setattr(sharing_module, "free_memory", lambda device, room=room: room)
        assert [len(part) for part in split_by_memory(plans, 32, "cpu")] == parts


@pytest.mark.parametrize("worker", [False, True])
def test_what_does_not_fit_in_memory_is_refused_before_any_training(target, tmp_path, monkeypatch, worker):
    monkeypatch.setattr(sharing_module, "free_memory", lambda device: 1.5e8)
    made, lost = plan("topk", target, tmp_path), plan("topk", target, tmp_path, d_sae=2**16, context_size=32)
    if worker:  # others may have the memory that it lacks
        monkeypatch.setenv(WORKER, "1")
    with pytest.raises(
        UsageError, match=r"d_sae = 65536 and d_in = 32 needs .* GB, and 0.1 GB of memory are free"
    ) as error:
        train_plans([made, lost])
    assert isinstance(error.value, TrainingFailed) == worker == made.is_trained
    assert not lost.checkpoint.exists()


def test_force_trains_anew(target, tmp_path):
    made = plan("temporal", target, tmp_path)
    train_plans([made])
    (made.folder / "mark").write_text("old")
    train_plans([made], force=True)
    assert made.is_trained
    assert not (made.folder / "mark").exists()


@pytest.mark.parametrize(("first", "begins_with_bos"), [(0, True), (7, False)])
def test_whether_contexts_begin_with_bos_is_recorded(model_folder, tmp_path, first, begins_with_bos):
    rows = [json.dumps({"input_ids": [first, *range(1 + i % 9, 40 + i % 9)]}) for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    target = choose_target("sandbox", str(model_folder), "blocks.1.hook_resid_post", str(tmp_path / "rows.jsonl"))
    made = plan("hierarchical", target, tmp_path, training_tokens=1024)
    train_plans([made], snapshots=(0.5,))
    for folder in (made.folder, made.folder / "lower", made.snapshot(0.5)):
        assert sae_variants.load(folder).cfg.metadata.prepend_bos is begins_with_bos


def test_an_option_that_is_refused_is_not_first_said_to_be_ignored(capsys):
    with pytest.raises(UsageError, match="unknown option 'window'"):
        train_command.main(["random", "--window", "4"])
    assert capsys.readouterr().err == ""


def test_the_largest_seed_trains(target, tmp_path):
    made = plan("temporal", target, tmp_path, seed=MOST_SEED, training_tokens=512)
    train_plans([made])
    assert made.is_trained


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_data_types_train(target, tmp_path, dtype):
    made = plan("temporal", target, tmp_path, dtype=dtype, training_tokens=1024)
    train_plans([made])
    assert str(sae_variants.load(made.folder).W_dec.dtype) == f"torch.{dtype}"


def test_a_latent_can_die_in_a_training_shorter_than_the_recipe_s_window(target, tmp_path):
    def window(**more):
        return make_plan("topk", target, {"training_tokens": 800, "batch_tokens": 8, **more}, tmp_path).settings

    assert target.train.get("dead_after_tokens", 10_000_000) > 800
    assert window().dead_after_tokens == 100
    assert window(dead_after_tokens=5000).dead_after_tokens == 5000  # as the user says
    assert make_plan("topk", load_target("gpt2-small-l8"), {}).settings.dead_after_tokens == 10_000_000


def test_sae_lens_own_runner_trains_a_variant(target, tmp_path):
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig

    from sae_variants.language_model.text import local_texts
    from sae_variants.registry.build import make_config

    config = LanguageModelSAERunnerConfig(
        sae=make_config("temporal", d_in=32, d_sae=64, k=4, window=4),
        model_name=target.model_name,
        hook_name=target.hook_name,
        training_tokens=2048,
        train_batch_size_tokens=256,
        context_size=32,
        n_batches_in_buffer=16,
        store_batch_size_prompts=4,
        activations_mixing_fraction=0.0,
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=str(tmp_path / "out"),
        save_final_checkpoint=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    dataset = Dataset.from_dict({"text": local_texts(target.dataset, "train")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LanguageModelSAETrainingRunner(config, override_dataset=dataset).run()
        assert sae_variants.load(tmp_path / "out").cfg.architecture() == "refined"


def test_a_latent_is_dead_by_tokens_not_steps(target, tmp_path):
    made = plan("stock:topk", target, tmp_path, dead_after_tokens=2048, batch_tokens=256)
    assert make_trainer(made, 32, "cpu").cfg.dead_feature_window == 8


def test_a_whole_number_and_the_same_as_a_fraction_are_one_sae(target, tmp_path):
    one, other = (
        make_plan("temporal", target, tiny("temporal") | {"consistency_coefficient": value, "k": k}, tmp_path)
        for value, k in ((3, 4), (3.0, 4.0))
    )
    assert one.folder == other.folder
    assert make_plan("stock:topk", target, tiny("stock:topk"), tmp_path).resolved["k"] == 4


@pytest.mark.parametrize("word", ["none", None])  # as on the command line, and as `--train.` options are parsed
def test_no_normalisation_is_the_word_none(target, tmp_path, word):
    made = plan("stock:topk", target, tmp_path, normalize_activations=word)
    assert made.settings.normalize_activations == "none"
    assert made.folder == plan("stock:topk", target, tmp_path, normalize_activations="none").folder
