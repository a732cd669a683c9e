"""Every target on the Hub from end to end, on small stand-ins that a server on loopback serves."""

from __future__ import annotations

import json

import pytest
import standins
import torch
from conftest import TINY, tiny
from hub import running_hub
from huggingface_hub import ModelCard, constants, snapshot_download

import sae_variants
from eval_runners.__main__ import main
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hub import register_model
from sae_variants.language_model.target import load_target, target_names
from sae_variants.training.plan import RECORD

TARGETS = [name for name in target_names() if not load_target(name).is_local]
DOCUMENTS = 20
PROBING = ["--context-length", "64", "--k-values", "1,2"]
for part in ("train", "test"):
    PROBING += [f"--probe-{part}-set-size", str(2 * DOCUMENTS)]
CORE = ["--n-eval-reconstruction-batches", "1", "--n-eval-sparsity-variance-batches", "2", "--context-size", "32"]


def test_every_target_on_the_hub_has_a_stand_in():
    assert {load_target(name).model_name for name in TARGETS} == set(standins.MODELS)


@pytest.mark.parametrize(
    "name", [name if name == "pythia-70m-l3" else pytest.param(name, marks=pytest.mark.slow) for name in TARGETS]
)
def test_train_score_publish_and_load(name, monkeypatch, tmp_path):
    from sae_lens import SAE

    target = load_target(name)
    train = [f"--train.{key}={value}" for key, value in {**TINY, **tiny("temporal")}.items()]
    where = ["--target", name, "--sae", "temporal", *train, "--trained", str(tmp_path / "trained")]
    runs = str(tmp_path / "runs")
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        standins.serve(hub, target.model_name, tmp_path / "model", DOCUMENTS)
        if target.model_name == "google/gemma-2-2b":
            # TransformerLens writes down the sizes of this model: the stand-in is loaded as one that is not on its list
            register_model(target.model_name)
        with pytest.raises(UsageError, match="--context-size 129 exceeds the model's 128 positions"):
            main(["core", *where, *CORE[:-1], "129", "--output", runs])
        assert not (tmp_path / "trained").exists()
        assert main(["core", *where, *CORE, "--output", runs]) == 0
        assert main(["sparse_probing", *where, *PROBING, "--output", runs]) == 0
        commit = hub.sha
        assert main(["publish", *where, "--results", runs, "--repo", "me/saes"]) == 0
        card = ModelCard(hub.repos["me/saes"]["README.md"].decode())
        named = {(one.dataset_type, one.dataset_revision) for one in card.data.eval_results}
        assert named == {(target.dataset, commit)}
        sae_id = next(path.partition("/")[0] for path in hub.repos["me/saes"] if path.endswith("cfg.json"))
        published = SAE.from_pretrained("me/saes", sae_id)
        snapshot_download(target.dataset, repo_type="dataset")
        requests = len(hub.log)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert main(["core", *where, *CORE, "--output", str(tmp_path / "offline")]) == 0
        assert main(["sparse_probing", *where, *PROBING, "--output", str(tmp_path / "offline")]) == 0
        assert len(hub.log) == requests
    (folder,) = (path.parent for path in (tmp_path / "trained").rglob("sae_weights.safetensors"))
    local = sae_variants.load(folder)
    assert all(torch.equal(value, local.state_dict()[key]) for key, value in published.state_dict().items())
    assert published.cfg.metadata.model_name == target.model_name
    results = {path.parts[-3]: json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("*.json")}
    for result in results.values():
        provenance = result["eval_result_unstructured"]["provenance"]
        assert provenance["model"] == f"{target.model_name}@{commit}"
        assert provenance["text_revision"] == commit
    of_datasets = results["sparse_probing"]["eval_result_unstructured"]["dataset_revisions"]
    assert len(of_datasets) == 8
    assert set(of_datasets.values()) == {commit}
    record = json.loads((folder / RECORD).read_text())
    assert (record["model_revision"], record["text_revision"]) == (f"{target.model_name}@{commit}", commit)
