"""Small stand-ins of what the targets need from the Hub: models of the same family and datasets with the same columns."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

from conftest import WORDS, make_model, make_text
from hub import Hub

MODELS = {
    "EleutherAI/pythia-70m-deduped": ("neox", 4),
    "EleutherAI/pythia-160m-deduped": ("neox", 9),
    "gpt2": ("gpt2", 9),
    "google/gemma-2-2b": ("gemma2", 20),
}
"""Name on the Hub -> family and layers, as many as the targets' hooks need."""

GITHUB_CODE = """
import json

import datasets


class GithubCodeConfig(datasets.BuilderConfig):
    def __init__(self, *args, languages=["all"], licenses=["all"], **kwargs):
        super().__init__(*args, **kwargs)
        self.languages = languages


class GithubCode(datasets.GeneratorBasedBuilder):
    BUILDER_CONFIG_CLASS = GithubCodeConfig
    BUILDER_CONFIGS = [GithubCodeConfig(name="all")]
    DEFAULT_CONFIG_NAME = "all"

    def _info(self):
        return datasets.DatasetInfo(
            features=datasets.Features({"code": datasets.Value("string"), "language": datasets.Value("string")})
        )

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name="train", gen_kwargs={"path": dl_manager.download("data/train.jsonl")})]

    def _generate_examples(self, path):
        with open(path) as file:
            for key, line in enumerate(file):
                row = json.loads(line)
                if row["language"] in self.config.languages:
                    yield key, row
"""
"""The dataset `codeparrot/github-code` is a script whose config takes `languages`; so is its stand-in."""


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    import pandas as pd

    file = io.BytesIO()
    pd.DataFrame(rows).to_parquet(file)
    return file.getvalue()


def labelled(number: int, seed: int, words: int = 20) -> str:
    """A document whose class shows in one word that is in no other class's."""
    rng = random.Random(f"{number} {seed}")
    return " ".join([*rng.choices(WORDS, k=words), f"kind{number}", *rng.choices(WORDS, k=5)])


def probing_datasets(per_class: int) -> dict[str, dict[str, bytes]]:
    """The repositories of SAEBench's eight datasets for sparse probing.

    Args:
        per_class: Documents of every class, or of every pair of profession and gender, category and rating.
    """

    def split(of_class) -> dict[str, bytes]:
        return {f"{part}.parquet": parquet(of_class(first)) for part, first in (("train", 0), ("test", per_class))}

    seeds = range(per_class)
    professions = (0, 1, 2, 6, 9, 11, 13, 14, 18, 19, 20, 21, 22, 25, 26)
    bios = split(
        lambda first: [
            {"hard_text": labelled(job, 2 * (first + n) + gender), "profession": job, "gender": gender}
            for job in professions
            for gender in (0, 1)
            for n in seeds
        ]
    )
    reviews = split(
        lambda first: [
            {"text": f"{labelled(kind, 9 * (first + n))} star{rating:.0f}", "category": kind, "rating": rating}
            for kind in (1, 2, 3, 5, 6)
            for rating in (1.0, 5.0)
            for n in seeds
        ]
    )
    news = split(
        lambda first: [{"text": labelled(label, first + n), "label": label} for label in range(4) for n in seeds]
    )
    code = [
        {"code": labelled(number, n, words=200), "language": language}
        for n in range(2 * per_class + 2)
        for number, language in enumerate(("C", "Python", "HTML", "Java", "PHP"))
    ]
    pairs = [pair.split("-") for pair in ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt")]
    europarl = {
        f"{first}-{second}/train-0.parquet": parquet(
            [{"translation": {first: labelled(number, n), second: "x"}} for n in range(2 * per_class + 2)]
        )
        for number, (first, second) in enumerate(pairs)
    }
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train-0.parquet\n" for name in map("-".join, pairs))
    europarl["README.md"] = f"---\nconfigs:\n{configs}---\n".encode()
    return {
        "LabHC/bias_in_bios": bios,
        "canrager/amazon_reviews_mcauley_1and5": reviews,
        "codeparrot/github-code": {"github-code.py": GITHUB_CODE.encode(), "data/train.jsonl": jsonl(code)},
        "fancyzhx/ag_news": news,
        "Helsinki-NLP/europarl": europarl,
    }


def serve(hub: Hub, model: str, folder: Path, per_class: int) -> None:
    """Fill a Hub with a model, the text of the targets and SAEBench's eight labelled datasets.

    Args:
        hub: The server.
        model: Name on the Hub, one of `MODELS`.
        folder: Where the model is made.
        per_class: Documents of every class.
    """
    family, layers = MODELS[model]
    fields = {"n_ctx": 128} if family == "gpt2" else {}  # TransformerLens reads it from the published config
    made = make_model(folder, family, scale=5, layers=layers, **fields)
    hub.repos[model] = {path.name: path.read_bytes() for path in made.iterdir()}
    texts = [{"text": text} for text in make_text(600)]
    hub.datasets["Skylion007/openwebtext"] = {"plain_text/train-0.parquet": parquet(texts[:300])}
    hub.datasets["monology/pile-uncopyrighted"] = {"train/00.jsonl": jsonl(texts[300:])}
    hub.datasets |= probing_datasets(per_class)
