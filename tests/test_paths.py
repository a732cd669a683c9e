"""Paths of this machine in texts that are published."""

from __future__ import annotations

import pytest

from eval_runners.store.paths import without_paths


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("/home/ann/models/gpt", "gpt"),
        ("--output /data/runs/x --k 3", "--output x --k 3"),
        ("~/a/b.txt", "b.txt"),
        ("C:\\Users\\ann\\x.txt", "x.txt"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("google/gemma-2-2b", "google/gemma-2-2b"),
        ("1/2 of it", "1/2 of it"),
        ("file='/home/ann/x'", "file='x'"),
        ("file:///home/ann/x", "x"),
        ("~ann/m/x", "x"),
        ("../up/x.txt", "x.txt"),
        ("--out=/a/b", "--out=b"),
        ("/home/ann lee/models/gpt 2", "gpt 2"),
        ("local:/home/ann/m", "local:m"),
        ("file:/home/ann/x", "x"),
        ("./../../home/ann/x", "x"),
        ("user/name:an-id", "user/name:an-id"),
        ("--x /a/b c/d", "--x b c/d"),
        ("sandbox/heldout", "sandbox/heldout"),
        ("blocks.3.hook_resid_post", "blocks.3.hook_resid_post"),
    ],
)
def test_paths_are_cut_down_and_nothing_else_is(text, cut):
    assert without_paths({"a": [text], text: 1}) == {"a": [cut], cut: 1}


def test_provenance_holds_no_path_of_this_machine():
    argv = ["--model", "/home/me/model/", "--dataset=~/texts/a.txt", "--sae", "temporal", "--output", "../out"]
    assert without_paths(argv) == [
        "--model",
        "model",
        "--dataset=a.txt",
        "--sae",
        "temporal",
        "--output",
        "out",
    ]
