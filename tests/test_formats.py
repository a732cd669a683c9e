"""SAEs of other libraries give the reconstruction of their own forward pass; what cannot be honoured is one line."""

from __future__ import annotations

import io
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import layouts
import numpy as np
import pytest
import torch
from layouts import D, K, S
from safetensors.torch import load_file, save_file

import sae_variants
from sae_variants.__main__ import main
from sae_variants.common.errors import UsageError
from sae_variants.formats import source
from sae_variants.formats.dictionary_learning import CLASSES
from sae_variants.formats.releases import check_release, list_release, releases
from sae_variants.formats.source import open_source

INPUTS = torch.randn(50, D, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def converted(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CONVERTED", str(tmp_path / "converted"))


def assert_computes(folder, formula) -> None:
    """Loaded directly, and after conversion by `open_source`, an SAE computes the formula."""
    for sae in (sae_variants.load(folder), sae_variants.load(open_source(str(folder)).folder)):
        torch.testing.assert_close(sae(INPUTS).detach(), formula(INPUTS), rtol=0, atol=1e-5)
        codes = sae.encode(INPUTS)
        torch.testing.assert_close(sae.decode(codes).detach(), formula(INPUTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning(tmp_path, name):
    formula = layouts.dictionary_learning(tmp_path / "x", name, lm_name="EleutherAI/pythia-70m-deduped")
    assert_computes(tmp_path / "x", formula)
    metadata = sae_variants.load(tmp_path / "x").cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("EleutherAI/pythia-70m-deduped", "blocks.1.hook_resid_post")
    assert metadata.context_size == 128


@pytest.mark.parametrize("submodule", ["attention_out_layer_1", "mlp_out_layer_1", "router_1"])
def test_a_hook_that_dictionary_learning_does_not_name_as_we_do_stays_open(tmp_path, submodule):
    layouts.dictionary_learning(tmp_path / "x", "AutoEncoder", submodule_name=submodule)
    expected = {"a": "blocks.1.hook_attn_out", "m": "blocks.1.hook_mlp_out", "r": None}[submodule[0]]
    assert sae_variants.load(tmp_path / "x").cfg.metadata.hook_name == expected


@pytest.mark.parametrize("cfg", [{}, {"normalize_decoder": False}, {"signed": True}, {"num_latents": 0}], ids=str)
def test_sparsify(tmp_path, cfg):
    folder = tmp_path / "layers.5"
    assert_computes(folder, layouts.sparsify(folder, **cfg))
    assert sae_variants.load(folder).cfg.metadata.hook_name == "blocks.5.hook_resid_post"


def test_gemma_scope(tmp_path):
    assert_computes(tmp_path / "x", layouts.gemma_scope(tmp_path / "x"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"architecture": "topk", "k": K, "activation_fn_kwargs": {"k": K}},
        {"normalize_activations": False},
        {"normalize_activations": None},
        {"finetuning_scaling_factor": True, "frobnicate": 3, "seqpos_slice": [None], "l1_coefficient": 5, "seed": 42},
    ],
    ids=str,
)
def test_saelens_3_to_5(tmp_path, changes):
    formula = layouts.saelens(tmp_path / "x", {**layouts.OLD, **changes}, {"scaling_factor": torch.ones(S)})
    sae = sae_variants.load(tmp_path / "x")
    torch.testing.assert_close(sae(INPUTS).detach(), formula(INPUTS), rtol=0, atol=1e-5)
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert sae.cfg.device == "cpu"


V6 = layouts.V6
HOOK_Z = {"metadata": {**V6["metadata"], "hook_name": "blocks.1.attn.hook_z"}, "reshape_activations": "hook_z"}
REFUSED = [
    ({"architecture": "crosscoder"}, "unknown architecture 'crosscoder'"),
    ({"architecture": "jumprelu"}, 'Missing key(s) in state_dict: "threshold"'),
    ({"d_in": 16}, "size mismatch for W_enc"),
    ({"d_sae": None}, "cfg.json has no d_sae"),
    ({"d_in": "32"}, "d_in must be a whole number"),
    ({"dtype": None}, "cfg.json has no dtype"),
    ({"dtype": "float31"}, "float31"),
    ({"metadata": None}, "metadata in cfg.json is None"),
    ({"metadata": [1]}, "metadata in cfg.json is [1]"),
    ({"k": 4}, "k = 4 would be ignored"),
    ({"architecture": "topk", "k": 0}, "k must be above 0"),
    ({"architecture": "topk", "k": S + 1}, f"at most d_sae = {S}"),
    ({"architecture": "topk", "k": "4"}, "k must be above 0"),
    ({"architecture": "topk"}, "not None"),
    ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 4}}, "activation_fn topk would be ignored"),
    ({"activation_fn": "tanh-relu"}, "activation_fn tanh-relu would be ignored"),
    ({"activation_fn_str": "topk", "metadata": {}}, "without k in activation_fn_kwargs"),
    (
        {"activation_fn_str": "topk", "metadata": {}, "activation_fn_kwargs": {"k": 4, "signed": True}},
        "signed in activation_fn_kwargs",
    ),
    ({"normalize_activations": "expected_average_only_in"}, "with --norm-scaling-factor"),
    ({"normalize_activations": "covariance_whitening"}, "not folded into the weights"),
    ({"normalize_activations": "batch_norm"}, "normalize_activations must be none"),
    ({"reshape_activations": "heads"}, "reshape_activations must be none or hook_z"),
    ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input must be bool"),
    ({"d_sae": True}, "d_sae must be a whole number"),
    ({"architecture": "topk", "k": 4.0}, "a whole number, not 4.0"),
    ({"architecture": "topk", "k": True}, "k must be above 0"),
    (
        {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": "no"},
        "rescale_acts_by_decoder_norm must be bool",
    ),
    ({"metadata": {**V6["metadata"], "prepend_bos": "yes"}}, "prepend_bos must be bool or None, not 'yes'"),
    ({"metadata": {**V6["metadata"], "model_from_pretrained_kwargs": "abc"}}, "must be dict or None, not 'abc'"),
    ({"metadata": {**V6["metadata"], "seqpos_slice": 5}}, "seqpos_slice must be list"),
    ({"metadata": {**V6["metadata"], "model_name": ["gpt2"]}}, "model_name must be str or None"),
    ({"metadata": {**V6["metadata"], "training_architecture": [1]}}, "training_architecture must be str or None"),
    ({**layouts.OLD, "architecture": "standard", "metadata": {}, "prepend_bos": "yes"}, "prepend_bos must be bool"),
    ({"finetuning_scaling_factor": "yes"}, "finetuning_scaling_factor must be bool or None"),
    ({"finetuning_scaling_factor": True}, "has no tensor scaling_factor"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_a_config_is_honoured_or_refused(tmp_path, changes, says):
    layouts.saelens(tmp_path / "x", {**V6, **changes})
    with pytest.raises(UsageError) as error:
        sae_variants.load(tmp_path / "x")
    assert says in str(error.value)
    assert str(tmp_path / "x") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_too_many_and_a_scaling_factor_are_named(tmp_path):
    layouts.saelens(tmp_path / "x", V6, {"threshold": torch.zeros(S)})
    with pytest.raises(UsageError, match=r'Unexpected key\(s\) in state_dict: "threshold"'):
        sae_variants.load(tmp_path / "x")
    layouts.saelens(tmp_path / "y", {**V6, "finetuning_scaling_factor": False}, {"scaling_factor": torch.rand(S)})
    with pytest.raises(UsageError, match="Scaling factor is present"):
        sae_variants.load(tmp_path / "y")


def test_heads_of_hook_z_come_flattened(tmp_path):
    formula = layouts.saelens(tmp_path / "x", {**V6, **HOOK_Z})
    torch.testing.assert_close(sae_variants.load(tmp_path / "x")(INPUTS).detach(), formula(INPUTS), rtol=0, atol=1e-5)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def saved(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def trainer(**fields) -> bytes:
    return json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", **fields}}).encode()


BROKEN = [
    ("ae.pt", b"no zip", "ae.pt cannot be read: it is incomplete, or holds Python objects"),
    ("ae.pt", pickle.dumps(print), "which may run any code and are never loaded"),
    ("ae.pt", POINTER, "ae.pt is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    ("ae.pt", saved([1]), "holds no tensors by name"),
    ("config.json", b"{", "config.json is not JSON"),
    ("config.json", b"[]", "holds list, not fields"),
    ("config.json", trainer(k=9), "config.json has k = 9, but ae.pt has 4: one of the files belongs to another SAE"),
    ("config.json", trainer(activation_dim=99), "has activation_dim = 99, but ae.pt has 32"),
    ("config.json", trainer(dict_size=7), "has dict_size = 7, but ae.pt has 64"),
    ("config.json", trainer(lm_name=3), "model_name must be str or None, not 3"),
    ("config.json", b"{}", "no section trainer"),
    ("config.json", b'{"trainer": {"dict_class": "CrossCoder"}}', "unknown dict_class 'CrossCoder'"),
    ("config.json", b'{"trainer": {"dict_class": "GatedAutoEncoder"}}', "has no decoder_bias, gate_bias"),
    ("config.json", None, "it has no config.json, which belongs to the layout of dictionary_learning"),
]


@pytest.mark.parametrize(("name", "content", "says"), BROKEN)
def test_a_broken_folder_of_dictionary_learning_is_one_line(tmp_path, name, content, says):
    layouts.dictionary_learning(tmp_path / "x", "AutoEncoderTopK")
    (tmp_path / "x" / name).unlink()
    if content is not None:
        (tmp_path / "x" / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        sae_variants.load(tmp_path / "x")
    assert says in str(error.value)
    assert str(tmp_path / "x") in str(error.value)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("make", [layouts.gemma_scope, layouts.sparsify, lambda folder: layouts.saelens(folder, V6)])
def test_a_git_lfs_pointer_is_named(tmp_path, make):
    make(tmp_path / "x")
    for file in sorted((tmp_path / "x").iterdir()):
        content = file.read_bytes()
        file.write_bytes(POINTER)
        with pytest.raises(UsageError, match=f"{file.name} is a Git LFS pointer, not the file itself"):
            open_source(str(tmp_path / "x"))
        with pytest.raises(UsageError, match=f"{file.name} is a Git LFS pointer, not the file itself"):
            sae_variants.load(tmp_path / "x")
        file.write_bytes(content)


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    formulas = {
        "x/cfg.json": layouts.saelens(tmp_path / "x", V6),
        "layers.1/cfg.json": layouts.sparsify(tmp_path / "layers.1"),
        "y/config.json": layouts.dictionary_learning(tmp_path / "y", "AutoEncoderTopK"),
    }
    for name, formula in formulas.items():
        file = tmp_path / name
        file.write_text(file.read_text(), encoding="utf-8-sig")
        assert_computes(file.parent, formula)


@pytest.mark.parametrize("k", [0, S + 1, 999, 4.5, "4"])
def test_a_k_that_no_sae_can_have_is_refused_in_the_source(tmp_path, k):
    layouts.sparsify(tmp_path / "x", k=k)
    layouts.dictionary_learning(tmp_path / "y", "AutoEncoderTopK", k=k)
    file = tmp_path / "y" / "ae.pt"
    torch.save({name: value for name, value in torch.load(file).items() if name != "k"}, file)
    for folder in (tmp_path / "x", tmp_path / "y"):
        with pytest.raises(UsageError, match=f"cannot load the SAE in {folder}: k must be above 0 and at most"):
            main(["convert", str(folder), str(tmp_path / "out"), *GIVEN])
        with pytest.raises(UsageError, match=f"cannot load the SAE in {folder}: k must be above 0 and at most"):
            open_source(str(folder))
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "converted").rglob("*"))


def test_sparsify_s_model_is_that_of_the_own_run(tmp_path):
    """Equal files in two runs, and in one whose folder is reached by a link, are converted with their own model."""
    for run, model in (("run1", "pythia-70m"), ("run2", "pythia-160m")):
        layouts.sparsify(tmp_path / run / "layers.1")
        (tmp_path / run / "config.json").write_text(json.dumps({"model": model}))
    (tmp_path / "link").symlink_to(tmp_path / "run2" / "layers.1")
    found = []
    for name in ("run1/layers.1", "run2/layers.1", "link", "run1/layers.1"):
        metadata = sae_variants.load(open_source(str(tmp_path / name)).folder).cfg.metadata
        found.append((metadata.model_name, metadata.hook_name))
    hook = "blocks.1.hook_resid_post"
    assert found == [("pythia-70m", hook), ("pythia-160m", hook), ("pythia-160m", hook), ("pythia-70m", hook)]


def test_a_mended_reader_replaces_what_it_converted_before(tmp_path, monkeypatch):
    layouts.sparsify(tmp_path / "layers.1")
    before = open_source(str(tmp_path / "layers.1"))
    assert open_source(str(tmp_path / "layers.1")) == before
    monkeypatch.setattr(source, "READERS", source.READERS + 1)
    assert open_source(str(tmp_path / "layers.1")).folder != before.folder


def test_a_conversion_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    layouts.sparsify(tmp_path / "layers.1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_VARIANTS_CONVERTED", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="give another SAE_VARIANTS_CONVERTED"):
        open_source(str(tmp_path / "layers.1"))


def test_of_two_that_open_a_folder_at_once_one_converts_it(tmp_path, monkeypatch):
    layouts.sparsify(tmp_path / "layers.1")
    saved, save = [], source.save

    def slow(sae, folder):
        saved.append(folder)
        time.sleep(0.2)
        save(sae, folder)

    monkeypatch.setattr(source, "save", slow)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: open_source(str(tmp_path / "layers.1")).folder, range(4)))
    assert (len(folders), len(saved)) == (1, 1)
    assert {path.name for path in (tmp_path / "converted").iterdir()} == {folders.pop().name}


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"transcode": True}, "transcoder"),
        ({"activation": "groupmax"}, "'groupmax'"),
        ({"k": None}, "k must be above 0"),
        ({"d_in": 16}, "cfg.json has d_in = 16, but sae.safetensors has 32"),
        ({"num_latents": 99}, "has num_latents = 99, but sae.safetensors has 64"),
    ],
)
def test_what_sparsify_has_beside_topk_autoencoders_is_refused(tmp_path, cfg, says):
    layouts.sparsify(tmp_path / "x", **cfg)
    with pytest.raises(UsageError) as error:
        sae_variants.load(tmp_path / "x")
    assert says in str(error.value)


def test_an_npz_with_objects_or_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([print], dtype=object))
    with pytest.raises(UsageError, match=r"params\.npz holds Python objects, which may run any code"):
        sae_variants.load(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"half")
    with pytest.raises(UsageError, match=r"params\.npz is no archive of NumPy arrays, or it is incomplete"):
        sae_variants.load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((2, 3)))
    with pytest.raises(UsageError, match="has no b_enc, W_dec"):
        sae_variants.load(tmp_path)


def test_the_registry_is_read_without_network():
    assert len(releases()) > 100
    lines = list_release("gemma-scope-2b-pt-res-canonical")
    assert len(lines) == len(releases()["gemma-scope-2b-pt-res-canonical"].saes_map) + 1
    assert "of gemma-2-2b, from google/gemma-scope-2b-pt-res" in lines[0]
    assert "  layer_0/width_16k/canonical" in lines[1]
    assert "blocks.0.hook_resid_post" in lines[1]
    assert any("L0 " in line for line in list_release("gemma-scope-2b-pt-res"))


@pytest.mark.parametrize(
    ("release", "sae_id", "says"),
    [
        ("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonicl", "layer_12/width_16k/canonical"),
        ("gpt2-small-res-jb", "blocks.8.hook_resid_post", "blocks.8.hook_resid_pre"),
        ("gpt2-small-res-jb", "", "give one as gpt2-small-res-jb:SAE_ID"),
        ("gemma-scope-2b-pt-transcoders", "layer_12/width_16k/average_l0_6", "holds transcoders"),
    ],
)
def test_a_wrong_id_of_a_release(release, sae_id, says):
    with pytest.raises(UsageError) as error:
        check_release(release, sae_id)
    assert says in str(error.value)


GIVEN = ["--model-name", "gpt2", "--hook-name", "blocks.1.hook_resid_post", "--no-prepend-bos"]


def test_convert_names_what_is_missing_and_writes_nothing(tmp_path):
    layouts.gemma_scope(tmp_path / "x")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="give --model-name, --hook-name, --prepend-bos"):
        main(["convert", str(tmp_path / "x"), str(out)])
    with pytest.raises(UsageError, match="does not state the hook: give --hook-name"):
        main(["convert", str(tmp_path / "x"), str(out), "--model-name", "gpt2", "--prepend-bos"])
    assert not out.exists()


@pytest.mark.parametrize("fold", [[], ["--fold-norms"]])
def test_convert(tmp_path, capsys, fold):
    formula = layouts.gemma_scope(tmp_path / "x")
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "out"), *GIVEN, *fold]) == 0
    assert "largest difference of the reconstruction" in capsys.readouterr().out
    from sae_lens import SAE

    sae = SAE.load_from_disk(tmp_path / "out")
    torch.testing.assert_close(sae(INPUTS).detach(), formula(INPUTS), rtol=0, atol=1e-5)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(S)) == bool(fold)
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("gpt2", "blocks.1.hook_resid_post")
    assert metadata["prepend_bos"] is False
    assert metadata["model_from_pretrained_kwargs"] == {}
    with pytest.raises(UsageError, match="is not empty"):
        main(["convert", str(tmp_path / "x"), str(tmp_path / "out"), *GIVEN])


def rewrite(folder, name: str, value: float) -> None:
    """Set every value of a tensor of an SAE in SAELens' layout."""
    weights = load_file(folder / "sae_weights.safetensors")
    save_file({**weights, name: torch.full_like(weights[name], value)}, folder / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("cfg", "tensor", "value", "options", "says"),
    [
        (V6, "W_enc", float("nan"), [], "as NaN or infinite values: W_enc holds such values"),
        (V6, "b_dec", float("inf"), [], "as NaN or infinite values: b_dec holds such values"),
        (V6, "b_dec", 1e6, ["--dtype", "float16"], "with these options reconstructs .*: b_dec holds such values"),
        ({**V6, "dtype": "float16"}, "W_dec", 0.0, ["--fold-norms"], "with these options reconstructs .*: W_dec holds"),
        (
            {**V6, "architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
            "W_dec",
            0.0,
            ["--fold-norms"],
            f"values: {S} rows of W_dec are zero",
        ),
    ],
)
def test_convert_writes_no_sae_that_computes_nothing(tmp_path, cfg, tensor, value, options, says):
    layouts.saelens(tmp_path / "x", cfg)
    rewrite(tmp_path / "x", tensor, value)
    with pytest.raises(UsageError, match=says):
        main(["convert", str(tmp_path / "x"), str(tmp_path / "out"), *GIVEN[:2], GIVEN[-1], *options])
    assert not (tmp_path / "out").exists()


def test_convert_refuses_to_fold_what_folding_changes(tmp_path):
    layouts.sparsify(tmp_path / "x")
    with pytest.raises(UsageError, match="--fold-norms would change"):
        main(["convert", str(tmp_path / "x"), str(tmp_path / "out"), *GIVEN, "--fold-norms"])
    assert not (tmp_path / "out").exists()


def test_convert_folds_the_factor_of_the_inputs(tmp_path):
    cfg = {**V6, "normalize_activations": "expected_average_only_in"}
    formula = layouts.saelens(tmp_path / "x", cfg)
    words = ["convert", str(tmp_path / "x"), str(tmp_path / "out"), *GIVEN]
    with pytest.raises(UsageError, match="--norm-scaling-factor"):
        main(words)
    assert main([*words, "--norm-scaling-factor", "0.5"]) == 0
    expected = formula(INPUTS * 0.5) / 0.5
    torch.testing.assert_close(sae_variants.load(tmp_path / "out")(INPUTS).detach(), expected, rtol=0, atol=1e-5)


def test_convert_refuses_options_that_contradict_the_source(tmp_path):
    layouts.saelens(tmp_path / "x", V6)
    words = ["convert", str(tmp_path / "x"), str(tmp_path / "out"), "--model-name", "gpt2", "--prepend-bos"]
    with pytest.raises(UsageError, match=r"states the hook: blocks\.1\.hook_resid_post; leave out --hook-name"):
        main([*words, "--hook-name", "blocks.0.hook_resid_post"])
