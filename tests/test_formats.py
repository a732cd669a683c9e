"""SAEs of other libraries give the reconstruction of their own forward pass; what cannot be honoured is one line."""

from __future__ import annotations

import json
import pickle

import layouts
import numpy as np
import pytest
import torch
from layouts import D, K, S

import sae_variants
from sae_variants.__main__ import main
from sae_variants.common.errors import UsageError
from sae_variants.formats.dictionary_learning import CLASSES
from sae_variants.formats.releases import SCREENFUL, check_release, list_release, releases
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


@pytest.mark.parametrize("cfg", [{}, {"normalize_decoder": False}, {"signed": True}], ids=str)
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
    ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input must be true or false"),
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


BROKEN = [
    ("ae.pt", b"no zip", "cannot load the SAE"),
    ("ae.pt", pickle.dumps(print), "cannot load the SAE"),
    ("config.json", b"{", "cannot load the SAE"),
    ("config.json", b"{}", "no section trainer"),
    ("config.json", b'{"trainer": {"dict_class": "CrossCoder"}}', "unknown dict_class 'CrossCoder'"),
    ("config.json", b'{"trainer": {"dict_class": "GatedAutoEncoder"}}', "has no decoder_bias, gate_bias"),
    ("config.json", None, "it has no config.json, which belongs to the layout of dictionary_learning"),
]


@pytest.mark.parametrize(("name", "content", "says"), BROKEN)
def test_a_broken_folder_of_dictionary_learning_is_one_line(tmp_path, name, content, says):
    layouts.dictionary_learning(tmp_path / "x", "AutoEncoder")
    (tmp_path / "x" / name).unlink()
    if content is not None:
        (tmp_path / "x" / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        sae_variants.load(tmp_path / "x")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "says"),
    [({"transcode": True}, "transcoder"), ({"activation": "groupmax"}, "'groupmax'"), ({"k": None}, "int()")],
)
def test_what_sparsify_has_beside_topk_autoencoders_is_refused(tmp_path, cfg, says):
    layouts.sparsify(tmp_path / "x", **cfg)
    with pytest.raises(UsageError) as error:
        sae_variants.load(tmp_path / "x")
    assert says in str(error.value)


def test_an_npz_with_objects_or_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([print], dtype=object))
    with pytest.raises(UsageError, match="allow_pickle"):
        sae_variants.load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((2, 3)))
    with pytest.raises(UsageError, match="has no b_enc, W_dec"):
        sae_variants.load(tmp_path)


def test_the_registry_is_read_without_network():
    assert len(releases()) > 100
    lines = list_release("gemma-scope-2b-pt-res-canonical")
    assert len(lines) == SCREENFUL + 2
    assert "of gemma-2-2b, from google/gemma-scope-2b-pt-res" in lines[0]
    assert "  layer_0/width_16k/canonical" in lines[1]
    assert "blocks.0.hook_resid_post" in lines[1]
    assert lines[-1].strip() == f"and {len(releases()['gemma-scope-2b-pt-res-canonical'].saes_map) - SCREENFUL} more"
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
