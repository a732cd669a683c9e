"""Labelled text for probing: name -> class -> documents, split into train and test sets that share nothing.

Three kinds of names exist: SAEBench's (SAEBench loads them from the Hub), `sandbox/...` (in this package, no network)
and `local/...` (a user's file). The last two hold repeats. Each group of near-repeats keeps one document, so that no
probe is tested on what it was trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from eval_runners.data.near_repeats import drop_near_repeats
from eval_runners.data.task_files import SUFFIXES, Classes, read_task_file
from eval_runners.store.cache import cached_folder
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.hashing import hash_files, hash_value
from sae_variants.language_model.rows import suffix_of
from sae_variants.sandbox.corpus import dataset_files
from sae_variants.sandbox.tasks import DATASETS, TASKS_VERSION, documents, path_of

TRAIN_SET_SIZE, TEST_SET_SIZE = 4000, 1000
"""SAEBench's numbers of documents of a binary task."""
TEST_ONE_IN = 5
"""Documents of a class per test document, where a class has too few for SAEBench's numbers."""
SMALLEST_TEST = 5
"""Test documents per class below which accuracy is meaningless."""
PROBE_SIZES = "--probe-{}-set-size"
"""Spelling, in errors, of the options that set how many documents a side of a split has."""
DOCUMENTS = "documents.json"

_files: dict[str, Path] = {}


def register_task_file(path: str) -> str:
    """Register a user's file as a dataset.

    Returns:
        Name of the dataset; it holds a hash of the file's content and no folder.

    Raises:
        UsageError: no such file, or a suffix that is not supported.
    """
    file = Path(path)
    if not file.is_file() or suffix_of(file) not in SUFFIXES:
        raise UsageError(f"no file of tasks {path!r}: give a {', '.join(SUFFIXES)} with columns text and label")
    name = f"local/{file.stem}-{hash_files([file])[:6]}"
    _files[name] = file
    return name


def known_datasets() -> list[str]:
    """List the names of all datasets."""
    from sae_bench.sae_bench_utils import dataset_info

    return [*DATASETS, *_files, *dataset_info.chosen_classes_per_dataset]


def is_local_dataset(name: str) -> bool:
    """Whether the documents are in this package or a user's file, not on the Hub.

    Raises:
        UsageError: no dataset has that name.
    """
    return check_name("dataset", name, known_datasets()) in DATASETS or name in _files


def dataset_version(name: str, train_set_size: int, test_set_size: int, seed: int, option: str = PROBE_SIZES) -> str:
    """Hash of the documents that a split serves; for a dataset on the Hub its name, since nothing else is known."""
    if not is_local_dataset(name):
        return name
    return hash_value(split_dataset(name, train_set_size, test_set_size, seed, option), size=8)


def probe_dataset_version(name: str) -> str:
    """Hash of the content of one of the 113 datasets of the sae-probes package."""
    return hash_files([path_of(name)])


@cache
def probe_dataset_names() -> list[str]:
    """List the 113 datasets of the sae-probes package in its order, without importing that package, which is slow."""
    import pandas as pd

    table = pd.read_csv(dataset_files()[0].parents[1] / "probing_datasets_MASTER.csv.zst", compression="zstd")
    binary = table[table["Data type"] == "Binary Classification"]["Dataset save name"]
    return [name.rpartition("/")[2].removesuffix(".csv") for name in binary]


@cache
def distinct_classes(name: str) -> Classes:
    """Distinct documents of a dataset of this package or of a user's file, kept in the cache."""
    file = _files.get(name)
    files = [file] if file else [path_of(part) for parts in DATASETS[name].values() for part, _ in parts]

    def make(folder: Path) -> None:
        classes = drop_near_repeats(read_task_file(file) if file else documents(name))
        (folder / DOCUMENTS).write_text(json.dumps(classes))

    key = {"documents": name, "content": hash_files(files), "version": TASKS_VERSION}
    return json.loads((cached_folder(key, make) / DOCUMENTS).read_text())


def largest_set_sizes(names: Iterable[str]) -> tuple[int, int]:
    """Train and test set size as in SAEBench, reduced to what every class of the local datasets can fill.

    Raises:
        UsageError: a class has too few distinct documents for any split.
    """
    train, test = TRAIN_SET_SIZE, TEST_SET_SIZE
    for name in filter(is_local_dataset, names):
        label, texts = min(distinct_classes(name).items(), key=lambda item: len(item[1]))
        part = len(texts) // TEST_ONE_IN
        if part < SMALLEST_TEST:
            raise UsageError(
                f"label {label!r} of {name} has {len(texts)} distinct documents; at least "
                f"{TEST_ONE_IN * SMALLEST_TEST} are needed (near-repeats count once, and not at all where they have "
                "several labels)"
            )
        test = min(test, 2 * part)
        train = min(train, 2 * (len(texts) - part))
    return train, test


def split_dataset(
    name: str, train_set_size: int, test_set_size: int, seed: int, option: str = PROBE_SIZES
) -> tuple[Classes, Classes]:
    """Draw training and test documents: half of each size from every class.

    This is SAEBench's balance, where a binary task sets a class against as many documents of the other classes.

    Args:
        name: dataset of this package or a user's file.
        train_set_size: training documents of a binary task.
        test_set_size: test documents of a binary task.
        seed: seed of the draw.
        option: spelling of the options that set the sizes, with `{}` for train or test.

    Raises:
        UsageError: a size is odd, or a class has too few documents.
    """
    for what, size in (("train", train_set_size), ("test", test_set_size)):
        if size < 2 or size % 2:
            raise UsageError(f"{option.format(what)} must be an even number, half of it for each side, not {size}")
    sizes = train_set_size // 2, test_set_size // 2
    train, test = {}, {}
    for label, texts in distinct_classes(name).items():
        if len(texts) < sum(sizes):
            raise UsageError(
                f"label {label!r} of {name} has {len(texts)} distinct documents, fewer than {sizes[0]} + {sizes[1]}: "
                f"lower {option.format('train')} {train_set_size} or {option.format('test')} {test_set_size}"
            )
        order = random.Random(f"{seed} {label}").sample(texts, sum(sizes))
        train[label], test[label] = order[: sizes[0]], order[sizes[0] :]
    return train, test
