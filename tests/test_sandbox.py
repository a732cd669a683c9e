"""The embedded language model and its text: what its README claims, measured again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_variants.sandbox import corpus
from sae_variants.sandbox.corpus import CORPUS_VERSION, Document, documents, near_repeats, sampled_windows

FOLDER = Path(corpus.__file__).parent


@pytest.fixture(scope="module")
def heldout() -> list[Document]:
    return documents("heldout")


def test_the_split_is_of_content_alone_and_parts_everything(heldout):
    train = documents("train")
    assert not {d.text for d in train} & {d.text for d in heldout}
    share = sum(len(d.text) for d in heldout) / sum(len(d.text) for d in (*train, *heldout))
    assert 0.08 < share < 0.12
    assert len({d.source for d in heldout}) > 90
    assert [d.key for d in heldout] == sorted(d.key for d in heldout)


def test_the_documents_are_those_that_the_version_names():
    """A change here orphans every trained SAE and result unless `CORPUS_VERSION` changes with it."""
    for split, count, digest in (("train", 260273, "630964eca13e1e10"), ("heldout", 29056, "f8750b2bf8685228")):
        keys = np.array([d.key for d in documents(split)], dtype=np.uint64)
        assert len(keys) == count
        assert hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest() == digest
    assert CORPUS_VERSION == "corpus 7539524ab01605fc"


def test_little_of_the_held_out_text_stands_in_the_train_split(heldout):
    train_hashes, _ = sampled_windows([d.text for d in documents("train")])
    hashes, _ = sampled_windows([d.text for d in heldout])
    assert np.isin(hashes, train_hashes).mean() < 0.05


def test_near_repeats_by_hand():
    rng = np.random.default_rng(0)
    first, other = ("".join(chr(97 + c) for c in rng.integers(0, 26, 20_000)) for _ in range(2))
    texts = [first, first[:15_000], other, first[:2_000] + other[5_000:7_000] + first[9_000:], "short", other + first]
    assert near_repeats(texts).tolist() == [False, True, False, True, False, True]
    assert not near_repeats(["tiny", "tiny too"]).any()


def test_windows_do_not_reach_over_two_texts():
    text = "x" * 40
    hashes, _ = sampled_windows([text, text])
    assert len(hashes) == 0


def test_the_language_model_uses_context(heldout):
    from sae_variants.commands.make_sandbox import contexts
    from sae_variants.language_model.load import load_model

    stated = json.loads((FOLDER / "build.json").read_text())
    model = load_model("sandbox", "cpu", "float32")
    ids = [i for d in heldout[:1500] for i in [0, *model.tokenizer(d.text, add_special_tokens=False)["input_ids"]]]
    tokens = contexts(np.array(ids))[:96]
    with torch.no_grad():
        losses = torch.cat(
            [model(part, return_type="loss", loss_per_token=True).flatten() for part in tokens.split(16)]
        )
    assert losses.mean().item() == pytest.approx(stated["cross_entropy"], abs=0.15)
    assert stated["unigram"] - stated["cross_entropy"] >= 2.2
    assert stated["bigram"] - stated["cross_entropy"] >= 0.5
    # context helps: later positions are predicted better than early ones
    by_position = losses.unflatten(0, (len(tokens), -1)).mean(0)
    assert by_position[100:].mean() < by_position[2:20].mean() - 0.2


def test_it_is_small_and_long_enough():
    size = sum((FOLDER / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    assert size <= 16 * 2**20
    assert json.loads((FOLDER / "config.json").read_text())["max_position_embeddings"] >= 256


def test_the_readme_states_what_was_measured():
    stated = json.loads((FOLDER / "build.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    for key in ("cross_entropy", "unigram", "bigram"):
        assert f"{stated[key]:.2f}" in readme, key
    for key in ("parameters", "train_tokens"):
        assert f"{stated[key]:,}" in readme, key


@pytest.mark.slow
def test_build_resumes_and_repeats(tmp_path):
    """A killed and resumed build gives the same weights as an uninterrupted one."""

    def build(folder: Path, tokens: int) -> subprocess.CompletedProcess[str]:
        words = ["--out", str(folder), "--work", str(folder / "work"), "--tokens", str(tokens)]
        return subprocess.run([sys.executable, "-c", SMALL_BUILD, *words], capture_output=True, text=True, check=True)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build(whole, 8 * 4096)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SMALL_BUILD,
            "--out",
            str(broken),
            "--work",
            str(broken / "work"),
            "--tokens",
            str(8 * 4096),
        ]
    )
    while not (broken / "work" / "checkpoint.pt").exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    build(broken, 8 * 4096)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()


SMALL_BUILD = """
from sae_variants.commands import make_sandbox
full = make_sandbox.documents
make_sandbox.documents = lambda split: full(split)[:3000]
make_sandbox.CHECKPOINT_STEPS, make_sandbox.HELDOUT_CONTEXTS = 2, 16
make_sandbox.main()
"""
