"""Labelled real text that needs no network: eight datasets for probing, made of those in the `sae-probes` package.

The shape is that of SAEBench's eight: a few classes each, one task per class (that class against the others), 37 tasks.
The datasets there are mostly binary ("C or not"); a class here is what one or several of them agree on. Not used:
data whose classes have fewer than 500 distinct documents, whose documents are names or numbers rather than text, or
that the embedded model itself cannot tell apart with a probe on all its channels (emotions of tweets .56, subjects of
comments .61, all five star ratings .62: there an SAE's score would be noise). The labels are the package's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sae_variants.sandbox.corpus import dataset_files

TASKS_VERSION = 1
"""Part of the key of cached documents. Raise it whenever `documents` or `eval_runners`' removal of repeats changes."""
Parts = list[tuple[str, str]]

_CODE = {"C": "158_code_C", "Python": "159_code_Python", "HTML": "160_code_HTML"}

DATASETS: dict[str, dict[str, Parts]] = {
    # web text that ends with the name of a person of that occupation
    "sandbox/occupation": {
        job: [(f"{number}_wikidata_occupation_is{job}", "1")]
        for number, job in enumerate(("journalist", "athlete", "actor", "politician", "singer", "researcher"), 59)
    },
    # 0 world, 1 sport, 2 business, 3 science; the last stands under another name in the package's copy of AG News
    "sandbox/ag_news": {
        **{str(i): [(f"{161 + i}_agnews_{i}", "1")] for i in range(3)},
        "3": [("97_news_class", "Entertainment")],
    },
    # "other" is code in none of the three languages
    "sandbox/code": {
        **{language: [(file, "1")] for language, file in _CODE.items()},
        "other": [(file, "0") for file in _CODE.values()],
    },
    "sandbox/it_ticket": {
        topic: [("103_it_tick", topic)]
        for topic in ("Access", "Administrative rights", "HR Support", "Hardware", "Internal Project", "Storage")
    },
    "sandbox/yelp_sentiment": {"1": [("111_yelp_data", "0")], "5": [("111_yelp_data", "4")]},
    # web text that ends with that term
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
}  # fmt: skip


def path_of(file: str) -> Path:
    """Where one of the package's datasets lies."""
    return next(path for path in dataset_files() if path.name == f"{file}.csv.zst")


@cache
def _by_label(file: str) -> dict[str, list[str]]:
    """Label -> documents of one of the package's datasets."""
    import pandas as pd

    frame = pd.read_csv(path_of(file), compression="zstd", dtype=str)[["prompt", "target"]].dropna()
    return {str(label): rows["prompt"].tolist() for label, rows in frame.groupby("target")}


def documents(name: str) -> dict[str, list[str]]:
    """Class -> documents of a dataset, repeats and all. A class of several parts is what lies in every one of them."""
    found = {}
    for label, parts in DATASETS[name].items():
        (file, value), *others = parts
        elsewhere = [set(_by_label(f)[v]) for f, v in others]
        found[label] = [text for text in _by_label(file)[value] if all(text in part for part in elsewhere)]
    return found
