"""What is kept on disk: by key, whole or not at all, checked, and within a cap."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from eval_runners.store.cache import CAPACITY, MANIFEST, ROOT, cache_capacity, cached_folder, evict_unused, folder_size
from sae_variants.common.errors import UsageError
from sae_variants.common.files import claimed


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(ROOT, str(tmp_path / "cache"))
    return tmp_path / "cache"


def maker(calls: list[int], size: int = 1000):
    def make(folder) -> None:
        calls.append(1)
        torch.save(torch.arange(size), folder / "x.pt")

    return make


def test_made_once_per_key():
    calls: list[int] = []
    first, again, other = (cached_folder({"k": k}, maker(calls)) for k in (1, 1, 2))
    assert first == again != other
    assert len(calls) == 2


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "gone", "key", "no files"])
def test_a_damaged_file_is_made_again_with_a_warning(harm, capsys):
    calls: list[int] = []
    folder = cached_folder({"k": 1}, maker(calls))
    file = folder / (MANIFEST if harm in ("key", "no files") else "x.pt")
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    file.write_bytes(
        {
            "cut": data[:middle],
            "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "empty": b"",
            "gone": b"",
            "no files": b"{}",
            "key": b"{",
        }[harm]
    )
    if harm == "gone":
        file.unlink()
    cached_folder({"k": 1}, maker(calls))
    assert len(calls) == 2
    assert ("is gone" if harm == "gone" else "is damaged") in capsys.readouterr().err
    assert torch.load(folder / "x.pt", weights_only=True).equal(torch.arange(1000))


def test_a_relative_root_is_where_the_command_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ROOT, "here")
    assert cached_folder({"k": 1}, maker([])).parent == tmp_path / "here"


def test_what_fails_leaves_nothing(root):
    def broken(folder) -> None:
        (folder / "half.pt").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder({"k": 1}, broken)
    assert list(root.iterdir()) == []


def test_a_full_disk_is_a_usage_error(root):
    def full(folder) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left on device; set SAE_VARIANTS_CACHE"):
        cached_folder({"k": 1}, full)
    root.rmdir()
    root.write_text("a file")
    with pytest.raises(UsageError, match="cannot keep files"):
        cached_folder({"k": 1}, full)


def test_other_errors_are_not_taken_for_a_full_disk():
    def wrong(folder) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        cached_folder({"k": 1}, wrong)


def test_the_longest_unused_goes_first_and_what_is_needed_stays(monkeypatch):
    folders = [cached_folder({"k": k}, maker([], 100_000)) for k in range(3)]
    for age, folder in enumerate(folders):
        os.utime(folder, (1_000_000 + age, 1_000_000 + age))
    monkeypatch.setenv(CAPACITY, str(1.7 * folder_size(folders[0]) / 1e9))
    evict_unused(keep=[folders[0]])
    assert [folder.exists() for folder in folders] == [True, False, False]


def test_nothing_goes_while_there_is_room():
    folders = [cached_folder({"k": k}, maker([])) for k in range(3)]
    evict_unused(keep=[])
    assert all(folder.exists() for folder in folders)


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(root):
    abandoned, in_progress = root / "a.partial", root / "b.partial"
    for path in (abandoned, in_progress):
        path.mkdir(parents=True)
    with claimed(root / "b"):
        evict_unused(keep=[])
        assert [abandoned.exists(), in_progress.exists()] == [False, True]
    evict_unused(keep=[])
    assert list(root.iterdir()) == []


def test_a_folder_that_a_killed_process_left_is_filled_anew(root):
    folder = cached_folder({"k": 1}, maker([]))
    partial = folder.rename(folder.with_name(folder.name + ".partial"))
    (partial / "half.pt").write_bytes(b"x")
    cached_folder({"k": 1}, maker([]))
    assert [path.name for path in root.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "x.pt"]


FILL = """
import sys, time
from pathlib import Path
from eval_runners.store.cache import cached_folder

def fill(folder):
    with Path(sys.argv[1]).open("a") as log:
        log.write("filled ")
    time.sleep(2)
    (folder / "x").write_text("whole")

print((cached_folder({"k": 1}, fill) / "x").read_text())
"""


def test_two_processes_fill_a_folder_once(root, tmp_path):
    log = tmp_path / "log"
    words = [sys.executable, "-c", FILL, str(log)]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["whole\n", "whole\n"]
    assert log.read_text() == "filled "
    assert len(list(root.iterdir())) == 1, "neither a lock nor a part is left"


def test_a_cap_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(CAPACITY, "lots")
    with pytest.raises(UsageError, match="SAE_VARIANTS_CACHE_GB must be a number"):
        cache_capacity()
