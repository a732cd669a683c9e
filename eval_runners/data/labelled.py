"""Labelled text for probing: name -> class -> documents, in train and test sets that share nothing.

Three kinds of names: SAEBench's own (loaded by SAEBench, from the Hub), `sandbox/...` (in the package, no network) and
a user's file (`local/...`). The last two come with repeats; here every group of near-repeats keeps one document, so
that what a probe is tested on was never trained on.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from eval_runners.store.cache import cached_folder
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files, hash_value
from sae_variants.sandbox.corpus import content_key, dataset_files
from sae_variants.sandbox.tasks import DATASETS, TASKS_VERSION, documents, path_of

SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("text", "label")
READ_CHARACTERS = 600
"""Documents are compared over this many characters, about as much as a probe's 128 tokens."""
SHARED = 0.3
"""Share of the shorter document's runs of five words from which two documents are near-repeats."""
TRAIN_SET_SIZE, TEST_SET_SIZE = 4000, 1000
TEST_ONE_IN = 5
SMALLEST_TEST = 5
"""Test documents per class below which accuracy says nothing."""

Classes = dict[str, list[str]]
DOCUMENTS = "documents.json"
_files: dict[str, Path] = {}


def register_task_file(path: str) -> str:
    """The name under which a user's file is served; it holds its content's hash and no folder."""
    file = Path(path)
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"no file of tasks {path!r}: give a {', '.join(SUFFIXES)} with columns text and label")
    name = f"local/{file.stem}-{hash_files([file])[:6]}"
    _files[name] = file
    return name


def known_datasets() -> list[str]:
    """Every dataset that can be asked for by name."""
    from sae_bench.sae_bench_utils import dataset_info

    return [*DATASETS, *_files, *dataset_info.chosen_classes_per_dataset]


def is_local_dataset(name: str) -> bool:
    """Whether the documents come from here, not from the Hub. UsageError for a name that nobody has."""
    return check_name("dataset", name, known_datasets()) in DATASETS or name in _files


PROBE_SIZES = "--probe-{}-set-size"
"""Spelling of the options, as errors name them, that set how many documents a side of a split has."""


def dataset_version(name: str, train_set_size: int, test_set_size: int, seed: int, option: str = PROBE_SIZES) -> str:
    """Hash of the very documents that are served; for a dataset on the Hub its name, which is all that is known."""
    if not is_local_dataset(name):
        return name
    return hash_value(split_dataset(name, train_set_size, test_set_size, seed, option), size=8)


def probe_dataset_version(name: str) -> str:
    """The content of one of the 113 datasets of the sae-probes package."""
    return hash_files([path_of(name)])


@cache
def probe_dataset_names() -> list[str]:
    """The 113 datasets that the sae-probes package probes, in its order; read without importing it, which is slow."""
    import pandas as pd

    table = pd.read_csv(dataset_files()[0].parents[1] / "probing_datasets_MASTER.csv.zst", compression="zstd")
    binary = table[table["Data type"] == "Binary Classification"]["Dataset save name"]
    return [name.rpartition("/")[2].removesuffix(".csv") for name in binary]


def read_task_file(path: Path) -> Classes:
    """Label -> documents of a user's file. UsageError that says what is wrong with it, and in which row."""
    classes: Classes = {}
    try:
        for number, row in enumerate(_rows(path), start=1):
            for column in COLUMNS:
                if column not in row:
                    named = ", ".join(map(str, row)) or "none"
                    raise UsageError(f"{path} has no column {column!r} in row {number}, only {named}")
            text, label = row["text"], row["label"]
            if isinstance(label, float) and label.is_integer():
                label = int(label)  # a column of whole numbers with a gap is read as such
            for what, value in (("text", text), ("label", label)):
                if value is None or value != value or not str(value).strip():
                    raise UsageError(f"{path}: row {number} has an empty or missing {what}; fill or remove it")
            if not isinstance(text, str) or isinstance(label, dict | list):
                raise UsageError(f"{path}: row {number} has a text that is no text, or a label that is many")
            classes.setdefault(str(label), []).append(text)
    except UsageError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {(str(error).splitlines() or ['it is empty'])[0]}") from error
    if len(classes) < 2:
        raise UsageError(
            f"{path} has {f'one label, {next(iter(classes))}' if classes else 'no rows'}: a probe needs two labels"
        )
    return classes


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as they stand: no word becomes a number, no row is bent to fit."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pandas as pd

        yield from pd.read_parquet(path).to_dict("records")  # pyright: ignore[reportReturnType]
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if suffix == ".jsonl":
            for number, line in enumerate(file, start=1):
                row = json.loads(line) if line.strip() else {}
                if line.strip() and not isinstance(row, dict):
                    raise UsageError(f"{path}: line {number} is not an object with text and label")
                if row:
                    yield row
            return
        csv.field_size_limit(2**31 - 1)
        for number, row in enumerate(csv.DictReader(file), start=1):
            if None in row:
                raise UsageError(f"{path}: row {number} has more fields than the header: put quotes around its text")
            yield row


def word_runs(text: str) -> list[str]:
    """Every five words in a row, in lower case; all words of a text that has fewer."""
    words = re.findall(r"\w+", text[:READ_CHARACTERS].lower()) or [text.strip()]
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def drop_near_repeats(classes: Classes) -> Classes:
    """One document of each group of near-repeats, in an order that depends on content alone.

    Near-repeats share more than `SHARED` of the runs of five words of the shorter one, repeats of repeats included.
    A document with several labels, or a group that holds several, is left out: it has no right answer.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import HashingVectorizer

    labels: dict[str, set[str]] = {}
    for label, of_label in classes.items():
        for text in of_label:
            labels.setdefault(text, set()).add(label)
    texts = sorted((text for text in labels if text.strip()), key=content_key)
    vectorizer = HashingVectorizer(
        analyzer=word_runs,  # pyright: ignore[reportArgumentType]
        n_features=2**22,
        norm=None,  # pyright: ignore[reportArgumentType]
        alternate_sign=False,
        binary=True,
    )
    runs: Any = vectorizer.transform(texts)
    transposed = runs.T.tocsr()
    count = np.asarray(runs.sum(1)).ravel()
    rows, columns = [], []
    for start in range(0, len(texts), 1000):
        shared = (runs[start : start + 1000] @ transposed).tocoo()
        near = shared.data > SHARED * np.minimum(count[start + shared.row], count[shared.col])
        rows.append(start + shared.row[near])
        columns.append(shared.col[near])
    row, column = np.concatenate(rows), np.concatenate(columns)
    links = coo_matrix((np.ones(len(row)), (row, column)), shape=(len(texts), len(texts)))
    _, group = connected_components(links, directed=False)
    in_group: dict[int, list[str]] = {}
    for text, number in zip(texts, group, strict=True):
        in_group.setdefault(int(number), []).append(text)
    kept: Classes = {label: [] for label in classes}
    for members in in_group.values():
        found = set().union(*(labels[text] for text in members))
        if len(found) == 1:
            kept[found.pop()].append(members[0])
    return kept


@cache
def distinct_classes(name: str) -> Classes:
    """The distinct documents of one of our datasets."""

    if name in _files:
        files = [_files[name]]
    else:
        files = [path_of(file) for parts in DATASETS[name].values() for file, _ in parts]

    def make(folder: Path) -> None:
        found = drop_near_repeats(read_task_file(_files[name]) if name in _files else documents(name))
        (folder / DOCUMENTS).write_text(json.dumps(found))

    key = {
        "documents": name,
        "content": hash_files(files),
        "version": TASKS_VERSION,
    }
    return json.loads((cached_folder(key, make) / DOCUMENTS).read_text())


def largest_set_sizes(names: Iterable[str]) -> tuple[int, int]:
    """Train and test set size as in SAEBench, or as much of them as every class of ours among these datasets fills."""
    train, test = TRAIN_SET_SIZE, TEST_SET_SIZE
    for name in filter(is_local_dataset, names):
        label, texts = min(distinct_classes(name).items(), key=lambda item: len(item[1]))
        part = len(texts) // TEST_ONE_IN
        if part < SMALLEST_TEST:
            least = TEST_ONE_IN * SMALLEST_TEST
            raise UsageError(
                f"label {label!r} of {name} has {len(texts)} distinct documents; {least} are the least "
                "(of near-repeats one counts, and none where they have several labels)"
            )
        test = min(test, 2 * part)
        train = min(train, 2 * (len(texts) - part))
    return train, test


def split_dataset(
    name: str, train_set_size: int, test_set_size: int, seed: int, option: str = PROBE_SIZES
) -> tuple[Classes, Classes]:
    """(train, test): of every class half of each size, as SAEBench balances them, since a task pits one class against
    as many documents of the others. UsageError for a class that has fewer."""
    for what, size in (("train", train_set_size), ("test", test_set_size)):
        if size < 2 or size % 2:
            raise UsageError(f"{option.format(what)} must be an even number, half of it of each side, not {size}")
    train, test = {}, {}
    for label, texts in distinct_classes(name).items():
        sizes = train_set_size // 2, test_set_size // 2
        if len(texts) < sum(sizes):
            raise UsageError(
                f"label {label!r} of {name} has {len(texts)} distinct documents, fewer than {sizes[0]} + {sizes[1]}: "
                f"that {option.format('train')} {train_set_size} {option.format('test')} {test_set_size} need those"
            )
        order = random.Random(f"{seed} {label}").sample(texts, sum(sizes))
        train[label], test[label] = order[: sizes[0]], order[sizes[0] :]
    return train, test
