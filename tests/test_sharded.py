"""One SAE in several processes: the numbers of one process, checkpoints for any number of them, and clear failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from sharded_worker import BATCH, D_IN, FIELDS, RANDOM, STEPS, run

from sae_variants.__main__ import main
from sae_variants.common.console import run_command
from sae_variants.common.errors import UsageError
from sae_variants.registry.build import load
from sae_variants.sharded.ranks import check_shards
from sae_variants.sharded.train import check_plans
from sae_variants.training.plan import make_plan

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TRAINED = 400 * BATCH
AUX_TOKENS = BATCH // RANDOM["aux_every"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def in_processes(folder: Path, ranks: int, shards: int, last: int = STEPS, **fields) -> list[dict]:
    """Results of all processes."""
    worker = str(Path(__file__).with_name("sharded_worker.py"))
    words = [worker, str(folder), str(shards), str(last), json.dumps(fields)]
    folder.mkdir(exist_ok=True)
    command = [*TORCHRUN, "--nproc-per-node", str(ranks), *words]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    return json.loads((folder / "result.json").read_text())


def weights_of(result: dict) -> dict[str, torch.Tensor]:
    return load_file(Path(result["folder"]) / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("alone"), None, STEPS, {})


def check_equal(results: list[dict], alone: dict, shards: int) -> None:
    assert max(alone["dead"]) > 0.05, "AuxK is at work"
    for result in results:
        torch.testing.assert_close(result["losses"], alone["losses"][-len(result["losses"]) :], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result["dead"], alone["dead"][-len(result["dead"]) :])
    groups = len(results) // shards
    fired = sorted(
        [token + BATCH // groups * (rank // shards), latent]
        for rank, result in enumerate(results)
        for token, latent in result["fired"]
    )
    assert fired == [list(pair) for pair in alone["fired"]], "the same latents fire"
    for name, expected in weights_of(alone).items():
        torch.testing.assert_close(weights_of(results[0])[name], expected, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def in_two(tmp_path_factory) -> list[dict]:
    return in_processes(tmp_path_factory.mktemp("in_two"), 2, 2)


def test_two_processes_have_the_numbers_of_one(alone, in_two):
    check_equal(in_two, alone, 2)
    folder = Path(in_two[0]["folder"])
    assert {path.name for path in folder.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "training.json"}  # fmt: skip
    sae = load(folder)
    assert type(sae) is type(load(alone["folder"]))
    config, expected = (json.loads((Path(made) / "cfg.json").read_text()) for made in (folder, alone["folder"]))
    assert config["metadata"].pop("l0") == pytest.approx(expected["metadata"].pop("l0"))
    assert config == expected
    assert not [path for path in folder.parent.iterdir() if path.suffix in (".partial", ".checkpoint")]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "shards"), [(2, 1), (4, 2), (4, 4)])
def test_shards_and_groups_have_the_numbers_of_one_process(alone, tmp_path, ranks, shards):
    check_equal(in_processes(tmp_path, ranks, shards), alone, shards)


@pytest.mark.slow
def test_one_aux_token_in_three_and_plain_losses_are_those_of_one_process(tmp_path):
    fields = {"aux_every": 3, "normalized_losses": False, "aux_loss_coefficient": 0.1, "k_aux": 1}
    alone = run(tmp_path / "alone", None, STEPS, fields)
    check_equal(in_processes(tmp_path, 4, 2, **fields), alone, 2)


@pytest.mark.slow
def test_another_number_of_processes_continues(alone, tmp_path):
    in_processes(tmp_path, 2, 2, last=20)
    in_processes(tmp_path, 4, 4, last=35)
    check_equal(in_processes(tmp_path, 3, 1), alone, 1)


def test_the_bytes_of_a_step_are_those_of_the_formula(in_two):
    """k candidates and a reconstruction a token, and those of AuxK where a latent is dead; the rest has no token in it."""
    sent = in_two[0]["sent"]
    with_aux, rest = divmod(sent["candidates"] - STEPS * BATCH * FIELDS["k"] * 4, AUX_TOKENS * FIELDS["k_aux"] * 4)
    assert (0 < with_aux < STEPS, rest) == (True, 0)
    assert sent["reconstructions"] == (STEPS * BATCH + with_aux * AUX_TOKENS) * D_IN * 4
    assert sent["gradients"] == STEPS * D_IN * 4
    assert sent["numbers"] < STEPS * 100
    assert set(sent) == {"candidates", "reconstructions", "gradients", "numbers"}


def train_words(folder: Path) -> list[str]:
    options = {**FIELDS, "training_tokens": TRAINED, "context_size": 32, "buffer_contexts": 64}
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return ["train", "topk", *words, "--output", str(folder)]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_next_start_resumes(tmp_path):
    words = train_words(tmp_path)
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "sae_variants", *words]
    started = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(tmp_path.rglob("*.checkpoint")):
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.1)
    workers = [child for child in psutil.Process(started.pid).children() if "sae_variants" in " ".join(child.cmdline())]
    workers[-1].send_signal(signal.SIGKILL)
    output, _ = started.communicate(timeout=60)
    assert started.returncode
    assert "SIGKILL" in output
    assert not any(worker.is_running() for worker in workers)
    (checkpoint,) = tmp_path.rglob("shards.json")
    steps = json.loads(checkpoint.read_text())["n_training_steps"]
    assert steps
    with pytest.raises(SystemExit):
        run_command(lambda: main(words))
    subprocess.run([*command[:-1], str(tmp_path)], check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    (record,) = tmp_path.rglob("training.json")
    assert json.loads(record.read_text())["trained_tokens"] == TRAINED


def test_shards_without_torchrun_are_refused():
    with pytest.raises(UsageError, match="--shards 4 needs several processes: torchrun --nproc-per-node 4 -m"):
        check_shards(4)


def test_shards_that_do_not_divide_the_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert check_shards(None) == 4
    with pytest.raises(UsageError, match="--shards 3 does not divide the 4 processes of torchrun"):
        check_shards(3)


@pytest.mark.parametrize(
    ("name", "fields", "shards", "message"),
    [
        ("temporal", {}, 2, "temporal cannot be trained in shards, only topk can"),
        ("topk", {"d_sae": 96}, 5, "--shards 5 must divide d_sae = 96"),
        ("topk", {"d_sae": 96, "k": 50}, 2, "into shards of at least k = 50 latents"),
        ("topk", {"refine": 1}, 2, "refine of topk must be 0 with --shards, not 1"),
        ("topk", {"batch_tokens": 96}, 1, "batch_tokens = 96 must be a multiple of the 5 groups"),
    ],
)
def test_what_cannot_be_trained_in_shards_is_refused(target, tmp_path, monkeypatch, name, fields, shards, message):
    if shards == 1:
        monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(UsageError, match=message):
        check_plans([make_plan(name, target, fields, tmp_path)], shards)
