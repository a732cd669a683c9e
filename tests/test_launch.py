"""Several processes share the work of a command: nothing twice, nothing lost, and the numbers of one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import pytest
import slurm
from conftest import TINY

from eval_runners.__main__ import main
from eval_runners.saebench import memo
from sae_variants.__main__ import main as variants_main
from sae_variants.common import files
from sae_variants.common.errors import UsageError
from sae_variants.common.files import claim_of, claimed, is_claimed
from sae_variants.common.worker import (
    LAUNCH,
    NEIGHBOURS,
    WORKER,
    device_share,
    failure_of,
    fair_share,
    record_failure,
)
from sae_variants.launch import jobs as jobs_module
from sae_variants.launch import share
from sae_variants.launch.jobs import Job, cancel_jobs, jobs_of
from sae_variants.launch.options import Launch, without_launch_options
from sae_variants.launch.share import Cell, share_work
from sae_variants.launch.start import Worker, start_jobs
from sae_variants.training.train import train_plans

LAUNCH_WORDS = ["--launch", "local", "--jobs", "2"]
needs_slurm = pytest.mark.skipif(
    not slurm.is_installed(), reason="needs Debian's slurmctld, slurmd, slurm-client and munge, and root"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (LAUNCH, WORKER, NEIGHBOURS):
        monkeypatch.setenv(name, "")


def train_words(target, root: Path, model_folder: Path, text_file: Path) -> list[str]:
    options = [
        word
        for key, value in TINY.items()
        if key != "training_tokens"
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    where = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    return ["train", "temporal", *where, "--trained", str(root), *options]


def fake_jobs(monkeypatch, does: list) -> list[int]:
    """Let jobs be calls of functions, one for each start; return the numbers of workers that were asked for."""
    counts: list[int] = []

    def start(launch, places, worker):
        counts.append(len(places))
        does.pop(0)()
        return [Job("local", "0", socket.gethostname())] * len(places)

    monkeypatch.setattr(share, "start_jobs", start)
    monkeypatch.setattr(share, "require_cluster", lambda launch: None)
    return counts


def fake_programs(monkeypatch, folder: Path, **scripts: str) -> None:
    """Let the PATH have shell scripts by name, and nothing else."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def remember_jobs(root: Path, *jobs: Job) -> Path:
    """Write what a launch of `suite` has below a root; return its folder."""
    folder = root / ".launch" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    worker = {"module": "eval_runners", "argv": ["suite", "--sae", "topk"], "folder": str(folder)}
    (folder / "jobs.json").write_text(json.dumps({"worker": worker, "jobs": [vars(job) for job in jobs]}))
    return folder


def claim_elsewhere(path: Path, monkeypatch) -> None:
    """Claim a file as a process on another host did that has died since; claims are taken over after 0.2 s."""
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.2)
    with claimed(path):
        text = claim_of(path).read_text()
    fields = dict(line.partition("=")[::2] for line in text.splitlines())
    claim_of(path).write_text(text.replace(fields["host"], "node7"))


def test_the_worker_has_the_command_without_the_options_of_the_launch():
    argv = [
        "suite",
        "--sae",
        "topk",
        "--launch",
        "slurm",
        "--train.k",
        "4",
        "--jobs=3",
        "--slurm-gres",
        "gpu:1",
        "--detach",
    ]
    assert without_launch_options(argv) == ["suite", "--sae", "topk", "--train.k", "4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "2"], "--jobs belongs to --launch"),
        (["--slurm-gres", "gpu:1"], "--slurm-gres belongs to --launch"),
        (["--launch", "local", "--slurm-gres", "gpu:1"], "--slurm-gres belongs to --launch slurm"),
        (["--launch", "slurm", "--slurm-time", "2h"], "--slurm-time must be a whole number above 0, not '2h'"),
        (["--launch", "local", "--force"], "--force and --launch"),
    ],
)
def test_options_that_cannot_work_are_refused(words, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        main(["suite", "--sae", "random", "--output", str(tmp_path / "out"), *words])
    assert not list(tmp_path.iterdir())


def test_without_slurm_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no SLURM here \(no sbatch on the PATH\); use --launch local"):
        share_work(Launch("slurm", 2, False, {}), "sae_variants", ["train"], tmp_path, list)


@pytest.mark.parametrize(
    ("sinfo", "partition", "message"),
    [
        (
            "echo first >&2; echo 'sinfo: fatal: no source' >&2; exit 1",
            "main",
            "does not answer: sinfo: fatal: no sour",
        ),
        ("echo first >&2; exit 1", None, "SLURM's controller does not answer: first; use --launch local"),
        ("exit 3", None, "SLURM's controller does not answer: sinfo ended with code 3"),
        ("echo main; echo gpu", "main,gpus", "--slurm-partition main,gpus: there is no such .* gpus, only main, gpu$"),
        ("exit 0", "main", "--slurm-partition main: there is no such partition as main, and no other"),
    ],
)
def test_a_slurm_that_cannot_start_jobs_is_one_line(tmp_path, monkeypatch, capfd, sinfo, partition, message):
    fake_programs(monkeypatch, tmp_path, sinfo=sinfo, sbatch="exit 1")
    slurm_options = {} if partition is None else {"partition": partition}
    with pytest.raises(UsageError, match=message):
        share_work(Launch("slurm", 2, False, slurm_options), "sae_variants", ["train"], tmp_path / "root", list)
    assert not (tmp_path / "root").exists()
    assert capfd.readouterr() == ("", "")


def test_jobs_start_again_until_all_is_finished_or_failed(tmp_path, monkeypatch, capsys):
    done: set[str] = set()

    def cells():
        return [Cell(name, tmp_path / name, name in done) for name in "abc"]

    does = [lambda: done.add("a"), lambda: None, lambda: (done.add("b"), record_failure(tmp_path / "c", "no room"))]
    counts = fake_jobs(monkeypatch, does)
    assert share_work(Launch("local", 2, False, {}), "sae_variants", ["train"], tmp_path, cells)
    assert counts == [2, 2, 2]
    assert failure_of(tmp_path / "c") == "no room"
    said = [line.partition(" jobs: 0")[0] for line in capsys.readouterr().out.splitlines()]
    again = "all jobs have ended and 2 cells are left: started 2"
    assert said == ["started 2", again, again]


@pytest.mark.parametrize("end", ["died", "ended", "all in work"])
def test_a_job_that_dies_is_replaced_while_another_runs(tmp_path, monkeypatch, capsys, end):
    monkeypatch.setattr(share, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(share, "require_cluster", lambda launch: None)
    running, done, asked, looks, stack = {"first"}, set(), [], [], contextlib.ExitStack()
    monkeypatch.setattr(Job, "is_running", property(lambda job: job.number in running))

    def cells():
        looks.append(0)
        if len(asked) == 2 or len(looks) > 20:
            done.update("ab")
            running.clear()
        return [Cell(name, tmp_path / name, name in done) for name in "ab"]

    def start(launch, places, worker):
        asked.append([job and job.number for job in places])
        if end == "all in work":
            for name in "ab":
                stack.enter_context(claimed(tmp_path / name))
        if end == "ended":
            (Path(worker.folder) / "logs").mkdir(parents=True)
            (Path(worker.folder) / "logs" / "second_0_result.pkl").touch()
        names = ("first", "second" if len(asked) == 1 else "third")
        return [job or Job("local", name, socket.gethostname()) for job, name in zip(places, names, strict=True)]

    monkeypatch.setattr(share, "start_jobs", start)
    with stack:
        assert share_work(Launch("local", 2, False, {}), "sae_variants", ["train"], tmp_path, cells)
    said = capsys.readouterr().out.count("a job died: started another in the place of second")
    assert (asked[1:], said) == (([["first", None]], 1) if end == "died" else ([], 0))


def test_jobs_that_finish_nothing_are_given_up(tmp_path, monkeypatch):
    counts = fake_jobs(monkeypatch, [lambda: None] * share.STARTS)
    cells = [Cell("topk (seed 0)", tmp_path / "a", False), Cell("core of topk", None, False)]
    with pytest.raises(UsageError, match=r"ended 3 times without finishing topk \(seed 0\) and 1 others"):
        share_work(Launch("local", 8, False, {}), "sae_variants", ["train"], tmp_path, lambda: cells)
    assert counts == [2] * share.STARTS


def test_what_another_command_does_is_waited_for_and_no_job_is_started_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(share, "POLL_SECONDS", 0.01)
    fake_jobs(monkeypatch, [])
    looks = []

    def cells():
        looks.append(0)
        return [Cell("a", tmp_path / "a", is_done=len(looks) > 5), Cell("core of a", None, is_done=len(looks) > 5)]

    with claimed(tmp_path / "a"):
        assert share_work(Launch("local", 2, False, {}), "sae_variants", ["train"], tmp_path, cells)
    here = f"{socket.gethostname()} (process {os.getpid()})"
    assert capsys.readouterr().out == f"waiting for other processes: a: {here}\n"


def test_what_a_process_on_a_host_that_is_gone_has_claimed_is_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(share, "POLL_SECONDS", 0.01)
    done: list[bool] = []
    counts = fake_jobs(monkeypatch, [lambda: done.append(is_claimed(tmp_path / "a"))])
    claim_elsewhere(tmp_path / "a", monkeypatch)
    looks = []

    def cells():
        looks.append(0)
        assert len(looks) < 3000, "it is never taken over"
        return [Cell("a", tmp_path / "a", bool(done))]

    assert share_work(Launch("local", 2, False, {}), "sae_variants", ["train"], tmp_path, cells)
    assert (counts, done) == ([1], [False])
    assert "waiting for other processes: a: node7 (process " in capsys.readouterr().out


def test_the_last_line_of_a_log_is_that_of_its_progress_bar(tmp_path):
    job, logs = Job("local", "7", socket.gethostname()), tmp_path / "logs"
    logs.mkdir()
    assert job.last_line(tmp_path) == ""
    (logs / "7_0_log.out").write_text("began\n")
    assert job.last_line(tmp_path) == "began"
    (logs / "7_0_log.err").write_text(
        "x" * 10_000 + "\n" + "\r".join(f"training: {i}.5ktok/s" for i in range(9)) + "\r\n"
    )
    assert job.last_line(tmp_path) == "training: 8.5ktok/s"


def test_a_failure_is_tried_once_in_a_launch(target, tmp_path, monkeypatch):
    from conftest import tiny

    from sae_variants.training.plan import make_plan
    from sae_variants.training.train import TrainingFailed

    plan = make_plan("temporal", target, tiny("temporal"), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LAUNCH, str(tmp_path / "launch"))
        record_failure(plan.folder, "it diverged elsewhere")
        with pytest.raises(TrainingFailed, match="it diverged elsewhere"):
            train_plans([plan])
    train_plans([plan])
    assert plan.is_trained


def test_status_shows_the_jobs_and_what_failed(tmp_path, monkeypatch, capsys):
    folder = remember_jobs(tmp_path, Job("local", "0", socket.gethostname()), Job("local", "1", "node7"))
    monkeypatch.setenv(LAUNCH, str(folder))
    record_failure(tmp_path / "sae", "it diverged")
    assert main(["suite", "status", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "python -m eval_runners suite --sae topk",
        "  local 0 has ended",
        "  local 1 was started on node7 (only there it can be seen and ended)",
        f"  failed: {tmp_path / 'sae'}: it diverged",
    ]


@pytest.mark.parametrize(
    ("squeue", "state", "is_running"),
    [
        ("echo RUNNING node7", "runs on node7", True),
        ("echo PENDING", "is pending", True),
        ("exit 0", "has ended", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "has ended", False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "is unknown", True),
    ],
)
def test_a_slurm_job_has_ended_only_if_slurm_says_so(tmp_path, monkeypatch, squeue, state, is_running):
    fake_programs(monkeypatch, tmp_path, squeue=squeue)
    job = Job("slurm", "7", "here")
    assert (job.state, job.is_running) == (state, is_running)


@pytest.mark.parametrize(
    ("scancel", "state", "code"),
    [("echo > $0.queue", "is cancelled", 0), ("exit 0", "was told to end and is completing", 1)],
)
def test_cancel_says_what_has_become_of_a_slurm_job(tmp_path, monkeypatch, capsys, scancel, state, code):
    monkeypatch.setattr(jobs_module, "CANCEL_SECONDS", 0)
    (tmp_path / "scancel.queue").write_text("COMPLETING node7\n")
    squeue = f"while read line; do echo $line; done < {tmp_path}/scancel.queue"
    fake_programs(monkeypatch, tmp_path, scancel=scancel, squeue=squeue)
    remember_jobs(tmp_path, Job("slurm", "7", "here"))
    assert main(["suite", "cancel", "--output", str(tmp_path)]) == code
    assert capsys.readouterr().out.splitlines()[1:] == [f"  slurm 7 {state}"]


SPAWN = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdin.read()"


@pytest.fixture
def local_job():
    """A process like submitit's with a child; the job, the process and the child."""
    with subprocess.Popen(
        [sys.executable, "-c", SPAWN, "submitit"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        child = psutil.Process(int(process.stdout.readline()))
        yield Job("local", str(process.pid), socket.gethostname()), process, child
        for each in (process, child):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def test_cancel_ends_a_process_and_its_children(local_job):
    job, process, child = local_job
    assert job.is_running
    assert cancel_jobs([job]) == []
    assert process.wait(timeout=10) == -signal.SIGKILL  # its end may be a moment away
    assert not jobs_module.is_alive(child)


@pytest.mark.parametrize("last", ["process", "child"])
def test_cancel_waits_until_all_processes_have_ended(local_job, monkeypatch, last):
    job, process, child = local_job
    first, last = (child, process) if last == "process" else (process, child)
    sleeps: list[float] = []
    monkeypatch.setattr(Job, "cancel", lambda job: first.kill() or [child])
    monkeypatch.setattr(jobs_module.time, "sleep", lambda seconds: sleeps.append(seconds) or last.kill())
    assert cancel_jobs([job]) == []
    assert sleeps
    assert process.wait(timeout=10) == -signal.SIGKILL  # its end may be a moment away
    assert not jobs_module.is_alive(child)


def test_a_process_that_does_not_end_is_named(local_job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs_module, "CANCEL_SECONDS", 0)
    monkeypatch.setattr(Job, "cancel", lambda job: [])
    job, *_ = local_job
    remember_jobs(tmp_path, job)
    assert main(["suite", "cancel", "--output", str(tmp_path)]) == 1
    assert f"  local {job.number} was told to end and runs on {job.host}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cluster", "devices", "neighbours"), [("local", 0, 3), ("local", 2, 2), ("local", 8, 1), ("slurm", 2, 1)]
)
def test_a_worker_knows_how_many_there_are_and_outlives_the_terminal(
    tmp_path, monkeypatch, cluster, devices, neighbours
):
    import submitit
    import torch

    submitted = []

    class Executor:
        def __init__(self, folder, cluster):
            self.job_id = 7

        def update_parameters(self, **parameters):
            pass

        def submit(self, worker):
            ignored = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]
            submitted.append((worker.workers, worker.neighbours, ignored))
            return self

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    before = signal.getsignal(signal.SIGHUP)
    places = [None, Job(cluster, "1", "here"), None]
    started = start_jobs(Launch(cluster, 3, False, {}), places, Worker("sae_variants", (), str(tmp_path)))
    assert [job.number for job in started] == ["7", "1", "7"]
    assert submitted == [(3, neighbours, [signal.SIG_IGN] * 2)] * 2
    assert signal.getsignal(signal.SIGHUP) is before


def test_the_share_of_a_worker(monkeypatch):
    assert (fair_share(8), device_share()) == (8, 1)
    monkeypatch.setenv(WORKER, "3")
    monkeypatch.setenv(NEIGHBOURS, "2")
    assert [fair_share(count) for count in (0, 1, 3, 4, 8)] == [0, 1, 1, 2, 3]
    assert device_share() == 0.5


def test_workers_of_one_device_share_the_memory_for_what_several_saes_need(model, monkeypatch):
    monkeypatch.setattr(memo, "free_memory", lambda device: 8e9)
    monkeypatch.setattr(memo, "_memories", WeakKeyDictionary())
    monkeypatch.setenv(NEIGHBOURS, "4")
    assert (memo.room_for_saes("cpu"), memo.memory_of(model).room) == (memo.SHARE * 2e9, memo.SHARE * 2e9)


def weights(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in root.rglob("sae_weights.safetensors")}


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one_and_survive_a_kill(target, tmp_path, model_folder, text_file):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    seeds = ["--seeds", "0,1,2,3", "--training-tokens", "65536"]
    variants_main([*train_words(target, alone, model_folder, text_file), *seeds])
    command = [sys.executable, "-m", "sae_variants", *train_words(target, shared, model_folder, text_file)]
    waiting = subprocess.Popen([*command, *seeds, *LAUNCH_WORDS], stdout=subprocess.PIPE, text=True)
    while not (jobs := [job for file in shared.glob(".launch/*") for job in jobs_of(file)]):
        time.sleep(0.05)
    while not list(shared.rglob("*.checkpoint")):
        assert waiting.poll() is None
        time.sleep(0.05)
    for process in psutil.Process(int(jobs[0].number)).children():
        process.kill()
    output, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert f"a job died: started another in the place of {jobs[0].number}" in output
    assert output.count("started 2 jobs") == 1
    assert len(weights(shared)) == 4
    assert weights(shared) == weights(alone)
    assert not list(shared.rglob("*.claim"))


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_and_the_command_attaches_again(target, tmp_path, model_folder, text_file, capsys):
    words = [*train_words(target, tmp_path, model_folder, text_file), "--training-tokens", "262144", *LAUNCH_WORDS]
    command = [sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
               "from sae_variants.__main__ import main; main(sys.argv[1:])", *words]  # fmt: skip
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("*.checkpoint")):
        assert waiting.poll() is None
        time.sleep(0.05)
    os.kill(waiting.pid, signal.SIGINT)
    assert "the jobs go on: give the same command again" in waiting.communicate(timeout=60)[0]
    (folder,) = tmp_path.glob(".launch/*")
    assert [job for job in jobs_of(folder) if job.is_running]
    assert main(["suite", "status", "--output", str(tmp_path)]) == 0
    assert " runs on " in capsys.readouterr().out
    assert variants_main([*words, "--detach"]) == 0
    assert "attached to 1 running jobs" in capsys.readouterr().out
    assert main(["suite", "cancel", "--output", str(tmp_path)]) == 0
    assert " is cancelled: " in capsys.readouterr().out
    assert not any(job.is_running for job in jobs_of(folder))
    subprocess.run([sys.executable, "-m", "sae_variants", *words], check=True)  # from its checkpoint
    (record,) = tmp_path.rglob("training.json")
    assert json.loads(record.read_text())["trained_tokens"] == 262144


def suite_words(target, root: Path, model_folder: Path, text_file: Path) -> list[str]:
    options = [word for key, value in TINY.items() for word in (f"--train.{key.replace('_', '-')}", str(value))]
    options[options.index("--train.training-tokens") + 1] = "65536"
    core = {"batch-size-prompts": 4, "n-eval-reconstruction-batches": 1, "n-eval-sparsity-variance-batches": 2}
    options += [word for key, value in {**core, "context-size": 32}.items() for word in (f"--core.{key}", str(value))]
    where = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    folders = ["--trained", str(root / "trained"), "--output", str(root / "out")]
    return ["suite", "--sae", "temporal", "--seeds", "0,1,2", "--evals", "core", *where, *folders, *options]


def results(root: Path) -> dict[str, dict]:
    found = {}
    for path in (root / "out").rglob("*.json"):
        result = json.loads(path.read_text())
        if "eval_type_id" in result:
            result.pop("datetime_epoch_millis"), result.pop("eval_id", None)
            unstructured = result["eval_result_unstructured"]
            unstructured["provenance"] = {"seed": unstructured["provenance"]["seed"]}
            found[path.name] = result
    return found


@pytest.mark.slow
@needs_slurm
def test_slurm_jobs_that_are_cancelled_and_killed_lose_nothing(target, tmp_path, model_folder, text_file):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    main(suite_words(target, alone, model_folder, text_file))
    command = [sys.executable, "-m", "eval_runners", *suite_words(target, shared, model_folder, text_file)]
    with slurm.cluster(tmp_path / "slurm", slots=2):
        waiting = subprocess.Popen([*command, "--launch", "slurm", "--jobs", "2"], stdout=subprocess.DEVNULL)
        while len(claims := list((shared / "trained").rglob("*.claim"))) < 2:
            assert waiting.poll() is None
            time.sleep(0.05)
        first, second = jobs_of(next((shared / "out").glob(".launch/*")))
        first.cancel()
        for claim in claims:  # of both jobs; one is gone already
            owner = dict(line.partition("=")[::2] for line in claim.read_text().splitlines())
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(owner["pid"]), signal.SIGKILL)
        assert waiting.wait(timeout=400) == 0
        assert not first.is_running
        assert not second.is_running
    assert len(results(shared)) == 3
    assert results(shared) == results(alone)
    assert weights(shared) == weights(alone)


@pytest.mark.slow
@needs_slurm
def test_a_preempted_slurm_job_is_requeued_and_goes_on(target, tmp_path, model_folder, text_file):
    words = [*train_words(target, tmp_path / "trained", model_folder, text_file), "--training-tokens", "131072"]
    with slurm.cluster(tmp_path / "slurm"):
        command = [sys.executable, "-m", "sae_variants", *words, "--launch", "slurm", "--jobs", "1"]
        waiting = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not list(tmp_path.rglob("*.checkpoint")):
            assert waiting.poll() is None
            time.sleep(0.05)
        (folder,) = tmp_path.glob("trained/.launch/*")
        (job,) = jobs_of(folder)
        subprocess.run(["scancel", "--signal=USR2", job.number], check=True)  # as before a timeout or a preemption
        assert waiting.wait(timeout=500) == 0
        assert jobs_of(folder) == [job]  # it went on; no other one was started
    log = (folder / "logs" / f"{job.number}_0_log.err").read_text()
    assert "Requeued job" in log + (folder / "logs" / f"{job.number}_0_log.out").read_text()
    (record,) = (tmp_path / "trained").rglob("training.json")
    assert json.loads(record.read_text())["trained_tokens"] == 131072


@pytest.mark.slow
@needs_slurm
def test_a_partition_that_does_not_exist_is_one_line(tmp_path):
    launch = Launch("slurm", 2, False, {"partition": "gpus"})
    with (
        slurm.cluster(tmp_path / "slurm"),
        pytest.raises(UsageError, match="--slurm-partition gpus: there is no such partition as gpus, only main"),
    ):
        share_work(launch, "sae_variants", ["train"], tmp_path, list)
