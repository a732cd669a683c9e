"""Labelled real text that needs no network: eight datasets for probing, derived from the `sae-probes` package.

As in SAEBench's eight datasets, each has a few classes and one task per class, that class against the others: 37 tasks.
The datasets of the package are mostly binary, such as "C or not". A class here is the intersection of one or several
of their labels. Three kinds of data are left out: classes with fewer than 500 distinct documents, documents that are
names or numbers rather than text, and datasets that the embedded model does not separate.

A probe on all channels of the model reaches the following accuracies on the datasets that it does not separate; an
SAE's score on them would be noise.

    emotions of tweets      0.56
    subjects of comments    0.61
    five star ratings       0.62
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sae_variants.sandbox.corpus import dataset_files

TASKS_VERSION = 1
"""Part of the key of cached documents; raise it when `documents` or the removal of repeats in eval_runners changes."""
Parts = list[tuple[str, str]]

_CODE = {"C": "158_code_C", "Python": "159_code_Python", "HTML": "160_code_HTML"}

DATASETS: dict[str, dict[str, Parts]] = {
    # Web text that ends with the name of a person of that occupation.
    "sandbox/occupation": {
        job: [(f"{number}_wikidata_occupation_is{job}", "1")]
        for number, job in enumerate(("journalist", "athlete", "actor", "politician", "singer", "researcher"), 59)
    },
    # 0 world, 1 sport, 2 business, 3 science; the last has another name in the package's copy of AG News.
    "sandbox/ag_news": {
        **{str(i): [(f"{161 + i}_agnews_{i}", "1")] for i in range(3)},
        "3": [("97_news_class", "Entertainment")],
    },
    # "other" is code in none of the three languages.
    "sandbox/code": {
        **{language: [(file, "1")] for language, file in _CODE.items()},
        "other": [(file, "0") for file in _CODE.values()],
    },
    "sandbox/it_ticket": {
        topic: [("103_it_tick", topic)]
        for topic in ("Access", "Administrative rights", "HR Support", "Hardware", "Internal Project", "Storage")
    },
    "sandbox/yelp_sentiment": {"1": [("111_yelp_data", "0")], "5": [("111_yelp_data", "4")]},
    # Web text that ends with that term.
    **{
        f"sandbox/term_set{number}": {file.partition("_")[2]: [(file, "bigram")] for file in files}
        for number, files in enumerate(
            (
                ("65_high-school", "69_blood-pressure", "71_social-media", "72_gene-expression", "76_trial-court"),
                ("66_living-room", "68_credit-card", "74_magnetic-field", "79_human-rights", "84_clinical-trials"),
                ("67_social-security", "70_prime-factors", "75_cell-lines", "78_north-america", "85_mental-health"),
            ),
            start=1,
        )
    },
}


def path_of(file: str) -> Path:
    """Return the path of a dataset of the package."""
    return next(path for path in dataset_files() if path.name == f"{file}.csv.zst")


@cache
def _by_label(file: str) -> dict[str, list[str]]:
    """Return the documents of a dataset of the package by label."""
    import pandas as pd

    frame = pd.read_csv(path_of(file), compression="zstd", dtype=str)[["prompt", "target"]].dropna()
    return {str(label): rows["prompt"].tolist() for label, rows in frame.groupby("target")}


def documents(name: str) -> dict[str, list[str]]:
    """Return the documents of a dataset by class, repeats included; a class of several parts is their intersection."""
    by_class = {}
    for label, parts in DATASETS[name].items():
        (file, value), *others = parts
        elsewhere = [set(_by_label(f)[v]) for f, v in others]
        by_class[label] = [text for text in _by_label(file)[value] if all(text in part for part in elsewhere)]
    return by_class
