"""Anybody's SAE beside ours: on the loopback Hub, in SAELens' registry, in folders; two SAEs are never one row."""

from __future__ import annotations

import csv
import errno
import json
import shutil

import layouts
import pytest
import torch
from conftest import make_model, tiny
from hub import Hub, running_hub
from huggingface_hub import file_download
from layouts import V6, K, S

from eval_runners.commands import evaluate as eval_command
from eval_runners.harness.find_sae import SAERequest, locate_all, locate_name, resolve_requests
from eval_runners.harness.fit import check_fits
from eval_runners.harness.saved_sae import check_form
from eval_runners.leaderboard.rows import sae_identity
from sae_variants.common.errors import UsageError
from sae_variants.formats.releases import releases
from sae_variants.registry.variants import check_variant_name, is_variant, scorable_names
from sae_variants.training.plan import make_plan

FILES = {"cfg.json", "sae_weights.safetensors"}


@pytest.fixture(autouse=True)
def converted(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CONVERTED", str(tmp_path / "converted"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The loopback Hub as the process's Hub, with an empty cache."""
    with running_hub(monkeypatch, tmp_path / "hf") as server:
        yield server


def add(hub: Hub, repo: str, path: str, folder) -> None:
    files = {f"{path}/{file.name}" if path else file.name: file.read_bytes() for file in folder.iterdir()}
    hub.repos.setdefault(repo, {}).update(files)


def downloads(hub: Hub) -> set[str]:
    """Names of the files whose content was sent."""
    sent = [line for line in hub.log if line.startswith("GET") and "/resolve/" in line]
    return {line.split("/resolve/")[1].partition("/")[2] for line in sent}


def test_only_the_files_of_the_sae_are_downloaded(hub, tmp_path):
    layouts.saelens(tmp_path / "s", V6)
    add(hub, "me/saes", "layer_1", tmp_path / "s")
    hub.repos["me/saes"] |= {"layer_1/optimizer.pt": b"x", "layer_1/trainer_7/sae_weights.safetensors": b"y"}
    hub.repos["me/saes"]["layer_1/runner_cfg.json"] = b"{}"
    located = locate_name("me/saes:layer_1")
    assert located.label == "me/saes:layer_1"
    assert downloads(hub) == {f"layer_1/{name}" for name in FILES | {"runner_cfg.json"}}


def test_the_root_of_a_repository(hub, tmp_path):
    layouts.saelens(tmp_path / "s", V6)
    add(hub, "me/saes", "", tmp_path / "s")
    assert locate_name("me/saes:.").load("cpu").cfg.d_sae == S


@pytest.mark.parametrize("name", ["me/saes:a", "me/saes:a/", "me/saes:/a", "me/saes:./a"])
def test_one_sae_has_one_label(hub, tmp_path, name):
    layouts.saelens(tmp_path / "s", V6)
    add(hub, "me/saes", "a", tmp_path / "s")
    assert locate_name(name).label == "me/saes:a"


def test_a_revision_is_another_sae(hub, tmp_path):
    layouts.saelens(tmp_path / "new", {**V6, "architecture": "topk", "k": 8})
    layouts.saelens(tmp_path / "old", {**V6, "architecture": "topk", "k": 4})
    add(hub, "me/saes", "a", tmp_path / "new")
    old = {f"a/{file.name}": file.read_bytes() for file in (tmp_path / "old").iterdir()}
    hub.revisions["me/saes"] = {"v1": old}
    newest, first = locate_name("me/saes:a"), locate_name("me/saes@v1:a")
    assert (newest.load("cpu").cfg.k, first.load("cpu").cfg.k) == (8, 4)
    assert newest.label != first.label
    with pytest.raises(
        UsageError, match=r"me/saes at revision 'v9' on the Hugging Face Hub: it has no such revision \(HTTP 404\)"
    ):
        locate_name("me/saes@v9:a")


def test_what_the_hub_refuses_is_one_line_with_the_reason(hub, tmp_path, monkeypatch):
    layouts.saelens(tmp_path / "s", V6)
    add(hub, "me/saes", "layer_1/a", tmp_path / "s")
    hub.repos["me/gated"] = {"cfg.json": b"{}"}
    hub.gated.add("me/gated")
    hub.repos["me/notes"] = {"README.md": b""}
    hub.repos["me/half"] = {"a/cfg.json": b"{}"}
    says = {
        "me/gone:x": r"cannot get the repository me/gone on the Hugging Face Hub: the Hub has nothing of this name.*\(HTTP 404\)",
        "me/gated:x": r"me/gated on the Hugging Face Hub: access is granted on request: .* \(HTTP 403\)",
        "me/saes:layer_2/a": r"no folder 'layer_2/a' with an SAE; SAEs are in layer_1/a",
        "me/notes:x": "no folder of it holds an SAE",
        "me/half:a": "is not a saved SAE: it has no sae_weights.safetensors",
        "me/..saes:x": "is not the name of a repository",
    }
    for name, line in says.items():
        with pytest.raises(UsageError, match=line):
            locate_name(name)
    for status in (401, 429, 500, 503):
        hub.fails["/me/saes/"] = [status] * 100
        with pytest.raises(UsageError, match=rf"cannot get the repository me/saes .*\(HTTP {status}\)"):
            locate_name("me/saes:layer_1/a")
    hub.fails.clear()
    hub.close()
    with pytest.raises(UsageError, match="cannot be reached"):
        locate_name("me/saes:layer_1/a")


def test_a_full_disk_is_one_line_and_leaves_nothing(hub, tmp_path, monkeypatch):
    layouts.saelens(tmp_path / "s", V6)
    add(hub, "me/saes", "a", tmp_path / "s")

    def fill(url, temp_file, **kwargs):
        temp_file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", fill)
        with pytest.raises(UsageError, match=r"me/saes on the Hugging Face Hub: the disk of the local cache is full"):
            locate_name("me/saes:a")
    assert locate_name("me/saes:a").load("cpu").cfg.d_sae == S


def test_offline_with_a_warm_cache(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    layouts.sparsify(tmp_path / "s")
    add(hub, "me/saes", "layers.1", tmp_path / "s")
    before = locate_name("me/saes:layers.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_name("me/saes:layers.1").weight_hash == before.weight_hash
    with pytest.raises(UsageError, match=r"HF_HUB_OFFLINE|cannot be reached"):
        locate_name("me/others:layers.1")


@pytest.mark.parametrize("make", [layouts.gemma_scope, layouts.sparsify, "dictionary_learning"])
def test_other_layouts_on_the_hub(hub, tmp_path, make):
    folder = tmp_path / "s"
    formula = layouts.dictionary_learning(folder, "BatchTopKSAE") if isinstance(make, str) else make(folder)
    add(hub, "me/saes", "trainer_1", folder)
    hub.repos["me/saes"]["trainer_1/checkpoints/ae.pt"] = b"x"
    x = torch.randn(9, 32)
    torch.testing.assert_close(locate_name("me/saes:trainer_1").load("cpu")(x).detach(), formula(x), rtol=0, atol=1e-4)
    assert downloads(hub) == {f"trainer_1/{file.name}" for file in folder.iterdir()}


GEMMA = "gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82"
BENCH = "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109:blocks.12.hook_resid_post__trainer_0"


def test_gemma_scope_by_saelens_registry(hub, monkeypatch):
    content, formula = layouts.params_npz()
    hub.repos["google/gemma-scope-2b-pt-res"] = {"layer_12/width_16k/average_l0_82/params.npz": content}
    located = locate_name(GEMMA)
    assert located.label == GEMMA
    sae, x = located.load("cpu"), torch.randn(5, 32)
    torch.testing.assert_close(sae(x).detach(), formula(x), rtol=0, atol=1e-5)
    assert sae.cfg.metadata.model_name == "gemma-2-2b"
    assert sae.cfg.metadata.hook_name == "blocks.12.hook_resid_post"
    by_path = locate_name("google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82")
    assert by_path.weight_hash == located.weight_hash
    assert len([line for line in hub.log if line.startswith("GET") and "params.npz" in line]) == 1
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_name(GEMMA).weight_hash == located.weight_hash


def test_gemma_scope_is_scored_on_a_gemma(hub, tmp_path, text_file):
    """A stand-in of Gemma-2-2B, and Gemma Scope at its real path on the Hub, by one command."""
    layer = "layer_1/width_16k/average_l0_102"
    assert layer in releases()["gemma-scope-2b-pt-res"].saes_map
    hub.repos["google/gemma-scope-2b-pt-res"] = {f"{layer}/params.npz": layouts.params_npz()[0]}
    folder = make_model(tmp_path / "other", "gemma2")
    words = ["--sae", f"gemma-scope-2b-pt-res:{layer}", "--model", str(folder), "--dataset", str(text_file)]
    words += ["--hook-name", "blocks.1.hook_resid_post", "--output", str(tmp_path / "out"), *CORE]
    with pytest.raises(UsageError, match="was trained on gemma-2-2b, not on local-"):
        eval_command.main("core", words)
    assert not list((tmp_path / "out").rglob("*.json"))
    folder.rename(tmp_path / "gemma-2-2b")  # a download of the model that the SAE names
    words[words.index(str(folder))] = str(tmp_path / "gemma-2-2b")
    eval_command.main("core", words)
    (path,) = (tmp_path / "out").rglob("core/*/*.json")
    result = json.loads(path.read_text())
    assert result["sae_lens_id"] == f"gemma-scope-2b-pt-res:{layer}"
    assert result["sae_cfg_dict"]["architecture"] == "jumprelu"
    assert 0 < result["eval_result_metrics"]["sparsity"]["l0"] < S


def test_the_saebench_suite_by_saelens_registry(hub, tmp_path):
    path = "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_0"
    formula = layouts.dictionary_learning(tmp_path / "s", "AutoEncoderTopK", layer=12, lm_name="google/gemma-2-2b")
    add(hub, "canrager/saebench_gemma-2-2b_width-2pow12_date-1109", path, tmp_path / "s")
    sae, x = locate_name(BENCH).load("cpu"), torch.randn(5, 32)
    torch.testing.assert_close(sae(x).detach(), formula(x), rtol=0, atol=1e-5)
    assert (sae.cfg.k, sae.cfg.metadata.hook_name) == (K, "blocks.12.hook_resid_post")


def test_names_are_checked_before_anything_is_downloaded_or_trained(target, capsys):
    says = {
        "gemma-scope-2b-pt-res-canonica:x": "did you mean gemma-scope-2b-pt-res-canonical",
        "gpt2-small-res-jb:blocks.8.hook_resid_poste": "near are .*blocks.8.hook_resid_pre",
        "gpt2-small-res-jb": "give one as gpt2-small-res-jb:SAE_ID",
        "gemma-scope-2b-pt-transcoders": "holds transcoders",
        "me/saes": "an SAE on the Hub is written user/repo:path",
        "temporl": "did you mean 'temporal'",
        "temp": "unknown SAE 'temp': did you mean 'temporal'",
        "gemma-scope": "unknown release 'gemma-scope': did you mean gemma-scope-2-.*, or one of [0-9]+ more",
        "pythia-70m:x": "did you mean pythia-70m-deduped-att-sm or pythia-70m-deduped-mlp-sm or pythia-70m-deduped-res-sm",
        "me/x:../../y": "leads out of the repository",
        "me/x:a/../b": "leads out of the repository",
        r"me/x:a\\..\\b": "leads out of the repository",
        "me/x:C:/a": "leads out of the repository",
        "me/x@../v1:a": "leads out of the repository",
    }
    for name, line in says.items():
        with pytest.raises(UsageError, match=line):
            resolve_requests([name], target)
    assert "blocks.0.hook_resid_pre" in capsys.readouterr().out


def test_a_name_shows_whether_it_is_a_variant_s_or_a_release_s():
    for name in scorable_names():
        assert is_variant(name)
        check_variant_name(name)
    for release in releases():
        assert not is_variant(release)
        check_form(release)


def test_a_folder_may_have_nearly_the_name_of_a_variant(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "topk2").mkdir()
    assert [request.plan for request in resolve_requests(["topk2"], target)] == [None]
    with pytest.raises(UsageError, match="unknown SAE 'topk3': did you mean 'topk'"):
        resolve_requests(["topk3"], target)


def test_a_seed_that_is_no_number_is_no_seed(tmp_path):
    layouts.saelens(tmp_path / "x", {**V6, "metadata": {**V6["metadata"], "seed": [1], "training_tokens": "500M"}})
    located = locate_name(str(tmp_path / "x"))
    assert (located.seed, located.training_tokens) == (None, None)


NO_AUTOENCODERS = [
    ({"architecture": "transcoder", "d_out": 32, "apply_b_dec_to_input": False}, r"is a transcoder \(transcoder"),
    ({"metadata": {**V6["metadata"], "hook_name_out": "blocks.1.hook_mlp_out"}}, "to blocks.1.hook_mlp_out"),
    ({"metadata": {**V6["metadata"], "hook_head_index": 3}}, "head 3"),
]


@pytest.mark.parametrize(("changes", "says"), NO_AUTOENCODERS)
def test_what_is_no_autoencoder_is_refused(tmp_path, changes, says):
    layouts.saelens(tmp_path / "x", {**V6, **changes})
    with pytest.raises(UsageError, match=says):
        locate_name(str(tmp_path / "x"))


def test_a_hook_out_that_is_the_hook_is_an_autoencoder(tmp_path):
    hook = V6["metadata"]["hook_name"]
    layouts.saelens(tmp_path / "x", {**V6, "metadata": {**V6["metadata"], "hook_name_out": hook}})
    assert locate_name(str(tmp_path / "x"))


def test_the_target_supplies_what_an_sae_does_not_say(tmp_path, target, model, capsys):
    layouts.gemma_scope(tmp_path / "x")
    sae = locate_name(str(tmp_path / "x")).load("cpu")
    check_fits(sae, "x", target, model)
    metadata = sae.cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == (target.model_name, target.hook_name)
    assert metadata.prepend_bos is True
    metadata.seqpos_slice, metadata.model_from_pretrained_kwargs = (5, None), {"center_writing_weights": True}
    check_fits(sae, "x", target, model)
    warnings = capsys.readouterr().err
    assert "positions [5, None]" in warnings
    assert "{'center_writing_weights': True}" in warnings


def test_two_names_of_one_language_model(tmp_path, target, model):
    from dataclasses import replace

    layouts.saelens(tmp_path / "x", {**V6, "metadata": {**V6["metadata"], "model_name": "gpt2-small"}})
    sae = locate_name(str(tmp_path / "x")).load("cpu")
    check_fits(sae, "x", replace(target, model_name="gpt2"), model)
    sae.cfg.metadata.model_name = "gpt2-medium"
    with pytest.raises(UsageError, match="was trained on gpt2-medium, not on gpt2"):
        check_fits(sae, "x", replace(target, model_name="gpt2"), model)


CORE = ["--n-eval-reconstruction-batches", "1", "--n-eval-sparsity-variance-batches", "1", "--context-size", "32"]


def test_equal_weights_and_another_config_are_two_rows(tmp_path, model_folder, text_file):
    folders = []
    for name, k in (("a", 4), ("b", 16)):
        layouts.saelens(tmp_path / name / "final", {**V6, "architecture": "topk", "k": k})
        folders += ["--sae", str(tmp_path / name / "final")]
    words = [*folders, "--model", str(model_folder), "--hook-name", "blocks.1.hook_resid_post"]
    words += ["--dataset", str(text_file), "--output", str(tmp_path / "out"), "--csv", str(tmp_path / "rows.csv")]
    eval_command.main("core", [*words, *CORE])
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["core.l0"]) for row in rows] == [4, 16]
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("core/*/*.json")]
    assert len({sae_identity(result) for result in results}) == 2
    assert len({path.parent for path in (tmp_path / "out").rglob("core/*/*.json")}) == 2


def test_a_copy_of_a_trained_sae_with_another_config_is_another_sae(tmp_path, target, trained):
    folder = make_plan("stock:batchtopk", target, tiny("stock:batchtopk"), trained).folder
    here = locate_name(str(folder))
    assert here.label == f"stock:batchtopk-{folder.name}", "labels of what is trained here stay as they are"
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    cfg = json.loads((copy / "cfg.json").read_text())
    (copy / "cfg.json").write_text(json.dumps({**cfg, "apply_b_dec_to_input": not cfg["apply_b_dec_to_input"]}))
    located = locate_all(resolve_requests([str(folder), str(copy)], target), "cpu")
    assert len({sae.label for sae in located}) == 2
    moved = tmp_path / "final"
    shutil.copytree(copy, moved)
    assert locate_name(str(moved)).label == f"stock:batchtopk-final-{locate_name(str(moved)).weight_hash[:6]}"


def test_two_spellings_of_a_hub_id_are_one_request():
    first, second = (SAERequest(name) for name in ("me/saes:a", "me/saes:a/"))
    assert first.key == second.key
