"""Labelled text: distinct documents, disjoint sets, the sandbox's datasets, a user's file."""

from __future__ import annotations

import json
import re

import pytest
from conftest import make_tasks

from eval_runners.data import labelled
from eval_runners.data.labelled import (
    dataset_version,
    distinct_classes,
    is_local_dataset,
    largest_set_sizes,
    probe_dataset_names,
    register_task_file,
    split_dataset,
)
from eval_runners.data.near_repeats import drop_near_repeats
from eval_runners.data.task_files import SUFFIXES, read_task_file
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target
from sae_variants.sandbox.tasks import DATASETS, documents, path_of

LONG = "one two three four five six seven eight nine ten"


def test_near_repeats_keep_one_document():
    kept = drop_near_repeats({"a": [LONG, LONG + " eleven", LONG.upper(), "something else entirely"], "b": ["b b b"]})
    assert sorted(map(len, kept.values())) == [1, 2]
    assert "something else entirely" in kept["a"]


def test_repeats_of_repeats_are_one_group():
    words = [f"w{i}" for i in range(40)]
    chain = [" ".join(words[start : start + 16]) for start in (0, 8, 16, 24)]
    assert len(drop_near_repeats({"a": chain, "b": ["x"]})["a"]) == 1


def test_documents_of_two_labels_are_left_out():
    kept = drop_near_repeats({"a": [LONG, "only a"], "b": [LONG + " eleven", "only b"]})
    assert kept == {"a": ["only a"], "b": ["only b"]}


def test_short_documents_are_compared_whole_whatever_their_case():
    assert drop_near_repeats({"a": ["Red bird", "red  bird!", "blue bird"], "b": ["x"]})["a"] in (
        ["Red bird", "blue bird"], ["red  bird!", "blue bird"], ["blue bird", "Red bird"], ["blue bird", "red  bird!"],
    )  # fmt: skip


def test_the_order_of_the_file_counts_for_nothing():
    classes = make_tasks()
    reverse = {label: classes[label][::-1] for label in reversed(classes)}
    first, second = drop_near_repeats(classes), drop_near_repeats(reverse)
    assert {label: first[label] for label in second} == second


@pytest.fixture
def named(tasks_file) -> str:
    return register_task_file(str(tasks_file))


def test_train_and_test_are_disjoint_balanced_and_seeded(named):
    train, test = split_dataset(named, 40, 20, 0)
    assert {len(texts) for texts in train.values()} == {20}
    assert {len(texts) for texts in test.values()} == {10}
    assert not set().union(*train.values()) & set().union(*test.values())
    assert (train, test) == split_dataset(named, 40, 20, 0)
    assert (train, test) != split_dataset(named, 40, 20, 1)


def test_the_version_is_that_of_the_documents_served(named):
    assert dataset_version(named, 40, 20, 0) == dataset_version(named, 40, 20, 0)
    assert len({dataset_version(named, *sizes) for sizes in ((40, 20, 0), (40, 20, 1), (40, 22, 0), (42, 20, 0))}) == 4


def test_sizes_are_what_the_smallest_class_allows(named):
    train, test = largest_set_sizes([named])
    fewest = min(map(len, distinct_classes(named).values()))
    assert (train // 2 + test // 2, test // 2) == (fewest, fewest // 5)
    assert largest_set_sizes(["fancyzhx/ag_news"]) == (4000, 1000)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_says_the_same(tmp_path, suffix):
    import pandas as pd

    classes = {"1": ["a b", "c d"], "0": ["e f", "g, h"]}
    frame = pd.DataFrame([{"text": t, "label": int(k)} for k, texts in classes.items() for t in texts])
    path = tmp_path / f"t{suffix}"
    {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        ".parquet": lambda: frame.to_parquet(path),
        ".arrow": lambda: frame.to_feather(path),
    }.get(suffix, lambda: frame.to_json(path, orient="records", lines=suffix in (".jsonl", ".ndjson")))()
    assert read_task_file(path) == classes


def test_a_label_called_na_is_a_label(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\nx,NA\ny,null\n")
    assert set(read_task_file(path)) == {"NA", "null"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_no_word_becomes_a_number(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    rows = [("00090", "01"), ("1e3", "1"), ("x", "001")]
    if suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    else:
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    assert read_task_file(path) == {"01": ["00090"], "1": ["1e3"], "001": ["x"]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "text,label\na,b,x\nc,d,y\n", "row 1 has more fields than the header"),
        ("t.csv", "text,label\na,x\nc\n", "row 2 has an empty or missing label"),
        ("t.csv", "text,label\n", "has no rows"),
        ("t.jsonl", '{"text": ["a"], "label": 1}\n', "row 1 must have a string as text, not a list: ['a']"),
        ("t.jsonl", '{"text": "a", "label": [1]}\n', "must have a single label, not a list: [1]"),
        ("t.jsonl", '{"text": "a"}\n', "no column 'label' in row 1, only text"),
        ("t.jsonl", "[1]\n", "line 1 is not an object"),
        ("t.csv", "text,text,label\na,b,x\n", "has several columns 'text': rename all but one"),
        ("t.csv", f"text,{','.join(f'c{i}' for i in range(999))}\n" + "a" + ",b" * 999, "c38, and 960 more"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(says)):
        read_task_file(tmp_path / name)


def test_texts_without_a_word_are_compared_whole():
    assert sorted(drop_near_repeats({"a": ["🙂", "🙃", "🙂"], "b": ["!"]})["a"]) == ["🙂", "🙃"]


@pytest.mark.parametrize(("train", "test"), [(1, 20), (41, 20), (40, 1), (40, 3)])
def test_sizes_must_be_even(named, train, test):
    with pytest.raises(UsageError, match="must be an even number"):
        split_dataset(named, train, test, 0)


def test_unknown_names_name_the_near_ones():
    with pytest.raises(UsageError, match="did you mean 'sandbox/ag_news'"):
        is_local_dataset("sandbox/ag_nwes")


def test_the_sandbox_has_eight_datasets_and_35_tasks_that_no_one_takes_for_the_hub_s():
    assert len(DATASETS) == 8
    assert sum(map(len, DATASETS.values())) >= 35
    assert all(name.startswith("sandbox/") for name in DATASETS)
    assert set(load_target("sandbox").evaluations["sparse_probing"]["dataset_names"]) == set(DATASETS)


def test_every_part_of_the_sandbox_s_datasets_exists():
    for name, classes in DATASETS.items():
        for parts in classes.values():
            for file, _ in parts:
                assert path_of(file).is_file(), name


def test_code_in_none_of_the_languages_is_in_none_of_them():
    found = documents("sandbox/code")
    assert len(found["other"]) > 500
    assert not set(found["other"]) & set(found["C"] + found["Python"] + found["HTML"])


def no_two_are_near_repeats(name: str) -> None:
    settings = load_target("sandbox").evaluations["sparse_probing"]
    train, test = split_dataset(name, settings["probe_train_set_size"], settings["probe_test_set_size"], 42)
    served = {label: train[label] + test[label] for label in train}
    assert {len(texts) for texts in served.values()} == {450}
    assert {label: len(texts) for label, texts in drop_near_repeats(served).items()} == dict.fromkeys(served, 450)


def test_no_test_document_of_the_sandbox_is_near_a_train_document():
    no_two_are_near_repeats("sandbox/it_ticket")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"sandbox/it_ticket"}))
def test_nor_of_the_others(name):
    no_two_are_near_repeats(name)


def test_package_names_are_those_that_sae_probes_lists():
    import sae_probes

    assert probe_dataset_names() == sae_probes.DATASETS


def test_documents_are_made_once(named, cache, monkeypatch):
    distinct_classes(named)
    distinct_classes.cache_clear()
    monkeypatch.setattr(labelled, "drop_near_repeats", lambda classes: pytest.fail("made twice"))
    assert json.dumps(distinct_classes(named))
