"""One SAE in several processes: the numbers of one process, checkpoints for any number of them, and clear failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
from safetensors.torch import load_file
from sharded_worker import BATCH, D_IN, FIELDS, OF_VARIANT, STEPS, make_batches, run
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException

from sae_variants.__main__ import main
from sae_variants.commands import train
from sae_variants.common.console import run_command
from sae_variants.common.errors import UsageError
from sae_variants.common.files import backup_of
from sae_variants.registry.build import load
from sae_variants.sharded import lost as lost_module
from sae_variants.sharded.job import ShardedJob
from sae_variants.sharded.ranks import check_shards, is_torchrun
from sae_variants.sharded.train import check_plans, make_job
from sae_variants.training import sharing
from sae_variants.training.log import STEPS_BETWEEN_REPORTS
from sae_variants.training.plan import make_plan

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TRAINED = 400 * BATCH
AUX_TOKENS = BATCH // OF_VARIANT["topk"]["aux_every"]
FAST, NAMES = ("topk", "temporal"), ("topk", "temporal", "refined")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def in_processes(
    folder: Path, ranks: int, shards: int, names: tuple[str, ...] = NAMES, last: int = STEPS, **fields
) -> dict[str, list[dict]]:
    """Results of all processes by the name of the variant."""
    worker = str(Path(__file__).with_name("sharded_worker.py"))
    words = [worker, str(folder), str(shards), str(last), json.dumps(dict.fromkeys(names, fields))]
    folder.mkdir(exist_ok=True)
    command = [*TORCHRUN, "--nproc-per-node", str(ranks), *words]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    return json.loads((folder / "result.json").read_text())


def weights_of(result: dict) -> dict[str, torch.Tensor]:
    return load_file(Path(result["folder"]) / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: run(name, folder, None, STEPS, {}) for name in NAMES}


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
def in_two(tmp_path_factory) -> dict[str, list]:
    return in_processes(tmp_path_factory.mktemp("in_two"), 2, 2, FAST)


@pytest.mark.parametrize("name", FAST)
def test_two_processes_have_the_numbers_of_one(alone, in_two, name):
    check_equal(in_two[name], alone[name], 2)
    folder, folder_alone = Path(in_two[name][0]["folder"]), Path(alone[name]["folder"])
    assert {path.name for path in folder.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "training.json"}  # fmt: skip
    sae = load(folder)
    assert type(sae) is type(load(folder_alone))
    assert weights_of(in_two[name][0]).keys() == weights_of(alone[name]).keys()
    sparsity, expected = (load_file(made / "sparsity.safetensors")["sparsity"] for made in (folder, folder_alone))
    torch.testing.assert_close(sparsity, expected)
    config, expected = (json.loads((made / "cfg.json").read_text()) for made in (folder, folder_alone))
    assert config["metadata"].pop("l0") == pytest.approx(expected["metadata"].pop("l0"))
    assert config == expected
    assert not [path for path in folder.parent.iterdir() if path.suffix in (".partial", ".checkpoint")]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "shards"), [(2, 1), (2, 2), (3, 1), (4, 2), (4, 4)])
def test_shards_and_groups_have_the_numbers_of_one_process(alone, tmp_path, ranks, shards):
    results = in_processes(tmp_path, ranks, shards)
    for name in NAMES:
        check_equal(results[name], alone[name], shards)
        if name != "topk":
            check_bytes_of_batch_topk(results[name], name, shards)


@pytest.mark.slow
def test_one_aux_token_in_three_and_plain_losses_are_those_of_one_process(tmp_path):
    fields = {"aux_every": 3, "normalized_losses": False, "aux_loss_coefficient": 0.1, "k_aux": 1}
    alone = run("topk", tmp_path / "alone", None, STEPS, fields)
    check_equal(in_processes(tmp_path, 4, 2, ("topk",), **fields)["topk"], alone, 2)


FIRST_ARE_SLOW = {
    "slow": "first",
    "slow_fraction": 0.4,  # none of them in the second shard
    "contrast": "dot",
    "pairs": "adjacent",
    "consistency_coefficient": 0.01,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "fields"),
    [
        (2, {"d_sae": 192}),
        (4, {"d_sae": 192}),
        (2, {**FIRST_ARE_SLOW, "slow_fraction": 0.6}),
        (4, FIRST_ARE_SLOW),
        (2, {"refine": 0, "rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": False}),
        (2, {"normalize_activations": "expected_average_only_in", "refine": 2}),
    ],
)
def test_temporal_of_other_fields_has_the_numbers_of_one_process(tmp_path, ranks, fields):
    alone = run("temporal", tmp_path / "alone", None, STEPS, fields)
    results = in_processes(tmp_path, ranks, 2, ("temporal",), **fields)["temporal"]
    check_equal(results, alone, 2)
    if "d_sae" in fields:
        check_bytes_of_batch_topk(results, "temporal", 2, **fields)


@pytest.mark.slow
def test_another_number_of_processes_continues(alone, tmp_path):
    in_processes(tmp_path, 2, 2, last=20)
    in_processes(tmp_path, 4, 2, last=35)
    for checkpoint in tmp_path.rglob("*.checkpoint"):  # as a kill leaves it while a new one moves into place
        checkpoint.rename(backup_of(checkpoint))
    results = in_processes(tmp_path, 3, 1)
    assert {len(results[name][0]["losses"]) for name in NAMES} == {STEPS - 35}
    for name in NAMES:
        check_equal(results[name], alone[name], 1)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    in_processes(tmp_path, 2, 2, ("topk",), last=5)
    for part in tmp_path.rglob("*.checkpoint/shards/*.safetensors"):
        part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(subprocess.CalledProcessError) as failed:
        in_processes(tmp_path, 2, 2, ("topk",))
    (checkpoint,) = tmp_path.rglob("*.checkpoint")
    line = f"UsageError: the checkpoint {checkpoint} cannot be read (CheckpointException): remove it to start anew"
    assert line in failed.value.stderr.decode()


def test_a_checkpoint_that_a_kill_left_beside_its_place_is_found(target, tmp_path):
    plan = make_plan("topk", target, {}, tmp_path)
    backup_of(plan.checkpoint).mkdir(parents=True)
    ranks = SimpleNamespace(is_first=True, agree=lambda value: value)
    trainer: Any = SimpleNamespace(sae=SimpleNamespace(shards=SimpleNamespace(ranks=ranks)))
    with pytest.raises(UsageError, match="is of one process"):
        ShardedJob(plan, trainer).resume()
    assert plan.checkpoint.is_dir()


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1"), RuntimeError, "by peer"),
        (CheckpointException("read", {1: (OSError("too short"), None)}), UsageError, "cannot be read .CheckpointExce"),
        (RuntimeError("shape mismatch"), UsageError, r"cannot be read \(RuntimeError\): remove it to start anew"),
    ],
)
def test_a_process_lost_while_a_checkpoint_is_read_is_no_damage(target, tmp_path, monkeypatch, error, raised, says):
    plan = make_plan("topk", target, {}, tmp_path)
    (plan.checkpoint / "shards").mkdir(parents=True)
    (plan.checkpoint / "shards.json").write_text("{}")
    ranks = SimpleNamespace(is_first=True, agree=lambda value: value)
    trainer: Any = SimpleNamespace(sae=SimpleNamespace(shards=SimpleNamespace(ranks=ranks)))
    monkeypatch.setattr(ShardedJob, "_state", lambda self: {})
    monkeypatch.setattr(state_dict_loader, "load", Mock(side_effect=error))
    with pytest.raises(raised, match=says):
        ShardedJob(plan, trainer).resume()


def test_of_equal_values_the_first_process_keeps_as_many_as_there_is_room_for(in_two):
    """Each has 1, 2, 0, 2, 2, 3; of the six largest, both 3 and four of the 2."""
    assert in_two["ties"][0] == [0, 1, 0, 1, 1, 1]
    *twos, three = in_two["ties"][1]
    assert (twos[0], sum(twos), three) == (0, 1, 1)


def test_what_one_process_refuses_all_refuse(in_two):
    assert in_two["refused"] == ["too large here"] * 2


def check_bytes_of_batch_topk(results: list[dict], name: str, shards: int, **changed) -> None:
    """Of one group, no number of it is d_sae: the dead latents, too, count up to k_aux."""
    fields = {"window": 4, "refine": 1, **FIELDS, **OF_VARIANT[name], **changed}
    T, W, k_aux = fields["refine"], fields["window"], D_IN // 2
    groups, in_shards, is_slow = len(results) // shards, shards > 1, name == "temporal"
    tokens, latents, sent = BATCH // groups, fields["d_sae"] // shards, results[0]["sent"]
    n_dead = [round(dead * fields["d_sae"]) for dead in [0, *results[0]["dead"]]][:STEPS]
    expected = {
        "counts": STEPS * (T + 1 + (is_slow and in_shards)) * (4 * 256 + 2) * 8,
        "gradients": STEPS * D_IN * 4 * in_shards,
    }
    if in_shards:
        expected["reconstructions"] = ((1 + 2 * T) * STEPS + sum(n > 0 for n in n_dead)) * tokens * D_IN * 4
        expected["candidates"] = tokens * sum(min(n, k_aux) for n in n_dead) * 4
    if groups > 1:
        reports = STEPS // STEPS_BETWEEN_REPORTS + 1
        expected["counts"] += (STEPS + reports + STEPS) * latents * 4  # which are dead: AuxK, reports and the worker
        expected["gradients"] += STEPS * ((2 * D_IN + 1) * latents + D_IN) * 4
    if is_slow:
        clean = [~batch.special_N.view(groups, -1, W).any(2) for batch in make_batches()]
        windows, P = [(int(each[0].sum()), int(each.sum())) for each in clean], W * (W - 1) // 2
        expected["contrasts"] = sum(P * m * n + 2 * m * W for m, n in windows) * 4 * in_shards
        if groups > 1:
            expected["contrasts"] += sum(P * n for _, n in windows) * (1 + groups) * 4
            expected["codes"] = sum(map(max, *(result["codes"] for result in results[::shards]))) * (3 + groups) * 4
            expected["moments"] = -(-STEPS // 4) * 3 * latents * 4
    assert sent.pop("numbers") < STEPS * 100
    assert sent == expected


def test_the_bytes_of_a_step_of_batch_topk_are_those_of_the_formula(in_two):
    check_bytes_of_batch_topk(in_two["temporal"], "temporal", 2)


def test_the_bytes_of_a_step_are_those_of_the_formula(in_two):
    """k candidates and a reconstruction a token, and those of AuxK where a latent is dead; the rest has no token in it."""
    sent = in_two["topk"][0]["sent"]
    k_aux = OF_VARIANT["topk"]["k_aux"]
    with_aux, rest = divmod(sent["candidates"] - STEPS * BATCH * FIELDS["k"] * 4, AUX_TOKENS * k_aux * 4)
    assert (0 < with_aux < STEPS, rest) == (True, 0)
    assert sent["reconstructions"] == (STEPS * BATCH + with_aux * AUX_TOKENS) * D_IN * 4
    assert sent["gradients"] == STEPS * D_IN * 4
    assert sent["numbers"] < STEPS * 100
    assert set(sent) == {"candidates", "reconstructions", "gradients", "numbers"}


def train_words(name: str, folder: Path, **fields) -> list[str]:
    options = {**FIELDS, "training_tokens": TRAINED, "context_size": 32, "buffer_contexts": 64, **fields}
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return ["train", name, *words, "--output", str(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["1", "2"])
def test_the_whole_command_ends_with_the_weights_of_one_process(tmp_path, shards):
    words = train_words("temporal", tmp_path / "in_two", window=4, training_tokens=60 * BATCH)
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "sae_variants", *words, "--shards", shards]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    command = [sys.executable, "-m", "sae_variants", *words[:-1], str(tmp_path / "alone")]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    (folder,), (expected,) = (
        [path.parent for path in (tmp_path / made).rglob("cfg.json")] for made in ("in_two", "alone")
    )
    assert folder.name == expected.name
    for name, weights in load_file(expected / "sae_weights.safetensors").items():
        found = load_file(folder / "sae_weights.safetensors")[name]
        torch.testing.assert_close(found, weights, atol=1e-4, rtol=1e-3)
    records = [json.loads((made / "training.json").read_text()) for made in (folder, expected)]
    assert records[0]["threshold"] == records[1]["threshold"]
    assert records[0]["last_report"] == records[1]["last_report"]


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ((), "torchrun was told to end, or a process of another host was lost"),
        ((0,), "rank 0 was lost"),
        ((0, 2), "ranks 0, 2 were lost"),
    ],
)
def test_a_process_that_is_ended_says_which_one_was_lost(tmp_path, lost, reason):
    """The main thread does not run Python meanwhile, as in a collective."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    script = f"""
import ctypes, os, signal, socket, sys
from pathlib import Path
from types import SimpleNamespace
from sae_variants.sharded import lost
lost.GRACE_SECONDS = 0
libc, here = ctypes.CDLL(None), socket.gethostname()
processes = [(here, {ended.pid} if rank in {lost} else os.getpid()) for rank in range(3)] + [("elsewhere", {ended.pid})]
ranks = SimpleNamespace(rank=int({0 in lost}), of_all=lambda own: processes)
with lost.told_in_one_line(ranks, Path({str(tmp_path)!r})):
    libc.kill(os.getpid(), signal.SIGTERM)
    sys.exit(libc.poll(None, 0, 20_000) + 7)
"""
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    expected = f"{reason}, so the others were ended; the same command continues from {tmp_path}"
    assert (made.returncode, made.stderr.split("\n")) == (1, ["", expected, ""])


DIES_WHILE_READING = """
import os, signal, sys
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from sae_variants.__main__ import main
from sae_variants.common.console import run_command
if os.environ["RANK"] == sys.argv[1]:
    HuggingFaceStorageReader.read_data = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run_command(lambda: main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_next_start_resumes(tmp_path, lost):
    words = train_words("topk", tmp_path, k_aux=8)
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "sae_variants", *words]
    started = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(tmp_path.rglob("*.checkpoint")):
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.1)
    workers = [child for child in psutil.Process(started.pid).children() if "sae_variants" in " ".join(child.cmdline())]
    victim = next(worker for worker in workers if worker.environ()["RANK"] == str(lost))
    victim.send_signal(signal.SIGKILL)
    output, _ = started.communicate(timeout=60)
    assert started.returncode
    (folder,) = tmp_path.rglob("*.checkpoint")
    assert (
        output.count(f"\nrank {lost} was lost, so the others were ended; the same command continues from {folder}") == 1
    )
    assert output.count("the same command") == 1
    assert not any(worker.is_running() for worker in workers)
    (checkpoint,) = tmp_path.rglob("shards.json")
    steps = json.loads(checkpoint.read_text())["n_training_steps"]
    assert steps
    with pytest.raises(SystemExit):
        run_command(lambda: main(words))
    dying = [*TORCHRUN, "--nproc-per-node", "2", "--no-python", sys.executable, "-c", DIES_WHILE_READING, str(lost)]
    output = subprocess.run([*dying, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=300).stderr
    assert f"\nrank {lost} was lost, so the others were ended; the same command continues from {folder}\n" in output
    assert "cannot be read" not in output
    subprocess.run([*command[:-1], str(tmp_path)], check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    (record,) = tmp_path.rglob("training.json")
    assert json.loads(record.read_text())["trained_tokens"] == TRAINED


def test_shards_that_do_not_fit_in_memory_together_are_refused(target, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "free_memory", lambda device: 4e9)
    plan = make_plan("refined", target, {"d_sae": 4096, "batch_tokens": 2**17}, tmp_path)
    ranks: Any = SimpleNamespace(shards=2, groups=2, device="cpu", on_device=4, refuse_together=lambda check: check())
    # in each of four processes twice 2^16 x 2048 pre-activations, and weights, gradients and moments of few megabytes
    needed = 4 * 4 * (2 * 2**16 * 2048 + 4 * 2 * 24 * 2048) / 1e9
    with pytest.raises(UsageError, match=f"4 shards with d_sae = 2048 and d_in = 24 needs {needed:.1f} GB, and 4.0 GB"):
        make_job(plan, 24, ranks)


@pytest.fixture
def of_torchrun(monkeypatch) -> dict[str, str]:
    values = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def test_shards_without_torchrun_are_refused(of_torchrun, monkeypatch):
    assert is_torchrun()
    for name in of_torchrun:
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert not is_torchrun()
            with pytest.raises(UsageError, match="--shards 4 needs several processes: torchrun --nproc-per-node 4"):
                check_shards(4)


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [lost_module.REFUSAL_SECONDS]), (None, [])])
def test_the_first_process_refuses_at_once_and_another_one_if_it_is_not_ended(of_torchrun, monkeypatch, rank, waits):
    monkeypatch.delenv("LOCAL_RANK")
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    waited: list[float] = []
    monkeypatch.setattr(lost_module.time, "sleep", waited.append)
    with pytest.raises(UsageError, match="unknown SAE 'tpok'"):
        main(["train", "tpok"])
    assert waited == waits


def test_what_all_processes_refuse_is_said_once(tmp_path):
    words = ["train", "stock:standard", "topk", "--k", "4", "--shards", "3", "--output", str(tmp_path)]
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "sae_variants", *words]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert ended.returncode
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: --shards 3 does not divide the 2 processes of torchrun"]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_what_is_no_number_of_processes_is_refused(of_torchrun, monkeypatch, name):
    monkeypatch.setenv(name, "two")
    with pytest.raises(UsageError, match=f"the environment variable {name} must be a whole number, not 'two'"):
        check_shards(4)


def test_a_stray_number_of_processes_leaves_a_plain_training(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    trained: list = []
    monkeypatch.setattr(train, "train_plans", lambda plans, *rest, **options: trained.extend(plans))
    assert main(["train", "topk", "--output", str(tmp_path)]) == 0
    assert [plan.name for plan in trained] == ["topk"]


def test_shards_that_are_no_number_above_0_are_refused(capsys):
    for shards in ("-1", "0", "two"):
        with pytest.raises((SystemExit, UsageError)) as refused:
            main(["train", "topk", "--shards", shards])
        said = f"{refused.value}{capsys.readouterr().err}"
        assert f"{shards!r} is not a whole number of at least 1" in said


def test_shards_that_do_not_divide_the_processes_are_refused(of_torchrun):
    assert check_shards(None) == 4
    with pytest.raises(UsageError, match="--shards 3 does not divide the 4 processes of torchrun"):
        check_shards(3)


@pytest.mark.parametrize(
    ("name", "fields", "shards", "message"),
    [
        ("stock:topk", {}, 2, "stock:topk cannot be trained in shards, only refined, temporal, topk can"),
        ("temporal", {"consistency": "variance"}, 2, "consistency of temporal must be contrastive with --shards, not"),
        (
            "temporal",
            {"batch_tokens": 48},
            1,
            "= 48 must be a multiple of 32, for the 4 groups .* whole windows of 8 tokens$",
        ),
        ("refined", {"matryoshka_widths": [8]}, 2, "matryoshka_widths of refined must be .. with --shards, not .8."),
        ("topk", {"d_sae": 96}, 5, "--shards 5 does not divide d_sae = 96: give a divisor of it"),
        (
            "topk",
            {"d_sae": 96, "k": 50},
            2,
            "--shards 2 leaves 48 latents a shard, fewer than k = 50: give --shards 1 or fewer",
        ),
        ("topk", {"refine": 1}, 2, "refine of topk must be 0 with --shards, not 1"),
        ("topk", {"batch_tokens": 98}, 1, "= 98 must be a multiple of 4, for the 4 groups of processes$"),
    ],
)
def test_what_cannot_be_trained_in_shards_is_refused(target, tmp_path, monkeypatch, name, fields, shards, message):
    if shards == 1:
        monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=message):
        check_plans([make_plan(name, target, fields, tmp_path)], shards)
