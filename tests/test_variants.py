"""The contract, for every variant that discovery finds and for the stock baselines beside them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import sae_lens  # noqa: F401  registers
import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig

import sae_variants
from sae_variants.cli.fields import field_docs
from sae_variants.commands.train import make_parser
from sae_variants.registry.build import latent_groups, make_config
from sae_variants.registry.contract import TrainingHooks, VariantConfig, config_hooks, hooks_of
from sae_variants.registry.variants import find_variant, own_variant_names, variant_summaries
from sae_variants.training.settings import SETTING_NAMES, TrainSettings

BASELINES = ["stock:standard", "stock:topk", "stock:batchtopk", "stock:matryoshka_batchtopk"]
NAMES = [*own_variant_names(), *BASELINES]
OURS = own_variant_names()
D_IN, D_SAE = 12, 40


def small_fields(name: str) -> dict:
    wanted = {"k": 4, "window": 4}
    return {field: value for field, value in wanted.items() if field in find_variant(name).field_names}


def is_sentence(text: str) -> bool:
    """Whether a help text can be read alone: it starts with a capital letter or a symbol, and ends with a full stop."""
    is_start = not text[:1].islower() or not text[:1].isascii()
    is_fragment = text.startswith(("The same", "And", "What", "How much"))
    return bool(text) and is_start and not is_fragment and text.endswith((".", ".)"))


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def step_input(sae, acts: torch.Tensor, dead: torch.Tensor | None = None) -> TrainStepInput:
    coefficients = {c: getattr(v, "value", v) for c, v in sae.get_coefficients().items()}
    return TrainStepInput(acts, coefficients, dead, n_training_steps=0, is_logging_step=False)


def build(name: str):
    sae = sae_variants.build(name, d_in=D_IN, d_sae=D_SAE, seed=0, **small_fields(name))
    hooks_of(sae).special_N, hooks_of(sae).is_ours = torch.zeros(32, dtype=torch.bool), True
    return sae


def test_an_empty_batch_gives_empty_latents_and_an_empty_reconstruction(name):
    sae = build(name)
    for shape in ((0, D_IN), (3, 0, D_IN)):
        acts = sae.encode(torch.zeros(shape))
        assert acts.shape == (*shape[:-1], D_SAE)
        assert sae.decode(acts).shape == shape


def test_is_listed(name):
    assert name in sae_variants.names()


@pytest.mark.parametrize("name", OURS)
def test_docstring_says_what_it_is_and_what_k_means(name):
    doc = ast.get_docstring(ast.parse((Path(sae_variants.__file__).parent / f"{name}.py").read_text()))
    summary = doc.splitlines()[0]
    assert is_sentence(summary)
    assert not summary.startswith(f"{name}:")
    assert variant_summaries()[name] == summary.removesuffix(".")
    assert "\n    " in doc, "an equation"
    for part in ("arXiv", "per token", "Shapes:"):
        assert part in " ".join(doc.split())


@pytest.mark.parametrize("name", OURS)
def test_the_help_of_every_field_is_a_sentence_of_its_own(name):
    variant = find_variant(name)
    docs = field_docs(variant.config_class)
    our_classes = [cls for cls in variant.config_class.__mro__ if cls.__module__.startswith("sae_variants.")]
    ours = {field for cls in our_classes for field in vars(cls).get("__annotations__", {})}
    for field in ours | docs.keys():
        if field in VariantConfig.__annotations__ or field in {f.name for f in fields(variant.config_class)}:
            assert is_sentence(docs.get(field, "")), field


def test_the_help_of_every_option_of_train_is_a_sentence_of_its_own():
    for action in make_parser()._actions:
        if action.dest != "help":
            assert is_sentence(re.sub(r" \(default: [^)]*\)$", "", action.help or "")), action.option_strings
    assert set(field_docs(TrainSettings)) == SETTING_NAMES


def test_its_options_show_their_defaults(name, capsys):
    from sae_variants.__main__ import main

    main(["options", name])
    shown = capsys.readouterr().out
    assert "(default: " in shown
    assert "MISSING" not in shown


def test_a_step_is_finite_and_reaches_every_parameter(name):
    sae = build(name)
    torch.manual_seed(1)
    with torch.no_grad():
        sae.b_dec += 0.1 * torch.randn(D_IN)  # at zero the gradient of some biases vanishes by symmetry
    output = sae.training_forward_pass(step_input(sae, torch.randn(32, D_IN)))
    assert torch.isfinite(output.loss)
    output.loss.backward()
    if not sae.cfg.learns_by_gradient:
        assert all(p.grad is None or not p.grad.any() for p in sae.parameters())
        return
    for parameter_name, parameter in sae.named_parameters():
        if not parameter.requires_grad:  # frozen by design
            continue
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_encode_takes_both_shapes_and_never_mixes_prompts(name, tmp_path):
    sae = trained_form(name, tmp_path)
    torch.manual_seed(2)
    acts = torch.randn(3, 8, D_IN)
    latents = sae.encode(acts)
    assert latents.shape == (3, 8, D_SAE)
    torch.testing.assert_close(sae.encode(acts.flatten(0, 1)), latents.flatten(0, 1))
    changed = acts.clone()
    changed[1:] += 1
    torch.testing.assert_close(sae.encode(changed)[0], latents[0])
    assert (latents != 0).any()


def trained_form(name: str, folder: Path):
    sae = build(name)
    torch.manual_seed(3)
    for _ in range(20):  # lets running thresholds settle
        sae.training_forward_pass(step_input(sae, torch.randn(32, D_IN)))
    sae.save_inference_model(folder)
    return sae_variants.load(folder)


def test_save_and_load_are_exact(name, tmp_path):
    sae = trained_form(name, tmp_path / "a")
    acts = torch.randn(16, D_IN)
    again = sae_variants.load(tmp_path / "a")
    assert torch.equal(sae.decode(sae.encode(acts)), again.decode(again.encode(acts)))
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    assert config["metadata"]["training_architecture"] == find_variant(name).config_class.architecture()


def test_folding_decoder_norms_changes_no_output(name, tmp_path):
    sae = trained_form(name, tmp_path)
    acts = torch.randn(16, D_IN)
    before = sae.decode(sae.encode(acts))
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError:
        return
    torch.testing.assert_close(sae.decode(sae.encode(acts)), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_loads_with_plain_sae_lens_where_this_package_is_not(tmp_path):
    acts = torch.randn(16, D_IN)
    torch.save(acts, tmp_path / "acts.pt")
    stock = [name for name in NAMES if type(trained_form(name, tmp_path / name)).__module__.startswith("sae_lens.")]
    assert set(BASELINES) < set(stock)
    for name in stock:
        sae = sae_variants.load(tmp_path / name)
        torch.save(sae.decode(sae.encode(acts)).detach(), tmp_path / name / "out.pt")
    script = (
        "import sys, torch; from pathlib import Path; sys.modules['sae_variants'] = None\n"
        "from sae_lens import SAE\n"
        f"root = Path({str(tmp_path)!r}); acts = torch.load(root / 'acts.pt')\n"
        f"for name in {stock!r}:\n"
        "    sae = SAE.load_from_disk(root / name)\n"
        "    torch.testing.assert_close(sae.decode(sae.encode(acts)), torch.load(root / name / 'out.pt'),"
        " rtol=1e-5, atol=1e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class PlainConfig(VariantConfig, TopKTrainingSAEConfig):
    """A variant that overrides nothing."""


@dataclass
class PlainBatchConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    """A variant of an architecture that is itself saved as another."""


def test_a_config_has_the_documented_defaults():
    config = PlainConfig(d_in=3, d_sae=5, k=2)
    assert (config.parts, config.learns, config.learns_by_gradient, config.window) == ((), True, True, 1)
    assert config.architecture() == "test_variants"  # the file's name
    assert config.n_weights == 2 * 3 * 5
    assert config.recipe({"d_sae": 64}) == {}
    assert config.latent_groups(5, {}) == {}


@pytest.mark.parametrize(("config_class", "stock"), [(PlainConfig, "topk"), (PlainBatchConfig, "jumprelu")])
def test_a_config_is_saved_as_the_stock_architecture_that_it_extends(config_class, stock):
    config = config_class(d_in=3, d_sae=5, k=2)
    assert config.get_inference_config_class().architecture() == stock
    assert config.metadata.training_architecture == "test_variants"


def test_the_contract_adds_no_field():
    for ours, theirs in ((PlainConfig, TopKTrainingSAEConfig), (PlainBatchConfig, BatchTopKTrainingSAEConfig)):
        assert [f.name for f in fields(ours)] == [f.name for f in fields(theirs)]


def test_a_config_without_the_contract_gets_its_defaults():
    config_class = config_hooks(TopKTrainingSAEConfig)
    assert config_class is config_hooks(TopKTrainingSAEConfig)
    assert config_hooks(PlainConfig) is PlainConfig
    theirs, ours = TopKTrainingSAEConfig(d_in=3, d_sae=5, k=2), config_class(d_in=3, d_sae=5, k=2)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.get_inference_config_class() is theirs.get_inference_config_class()
    assert (ours.n_weights, ours.window, ours.parts, ours.recipe({}), ours.latent_groups(5, {})) == (30, 1, (), {}, {})


def test_a_training_sae_without_the_contract_gets_its_defaults():
    hooks = hooks_of(sae_variants.build("stock:topk", d_in=D_IN, d_sae=D_SAE, k=4))
    assert type(hooks) is TrainingHooks
    assert (hooks.special_N, hooks.adam_options, hooks.learning_rate_scale(7), hooks.trace) == (None, {}, 1.0, {})


@pytest.mark.parametrize("name", OURS)
def test_our_variants_inherit_the_contract(name):
    variant = find_variant(name)
    assert issubclass(variant.config_class, VariantConfig)
    assert issubclass(variant.sae_class, TrainingHooks)
    sae = build(name)
    assert hooks_of(sae) is sae


def test_latent_groups_are_those_of_the_trained_fraction(tmp_path):
    sae = sae_variants.build("temporal", d_in=D_IN, d_sae=D_SAE, k=4, window=4, slow_fraction=0.25)
    sae.save_inference_model(tmp_path / "temporal")
    groups = latent_groups(sae_variants.load(tmp_path / "temporal"))
    assert groups == {"slow": slice(0, 10), "fast": slice(10, 40)}
    assert latent_groups(trained_form("topk", tmp_path / "topk")) == {}
    assert latent_groups(trained_form("stock:topk", tmp_path / "stock")) == {}


def test_fast_batch_topk_equals_sae_lens_to_the_bit():
    from sae_lens.saes.batchtopk_sae import BatchTopK as Theirs

    from sae_variants.ops.batch_topk import BatchTopK

    for k, shape in ((3, (50, 40)), (0.5, (64, 10)), (10, (4, 10)), (2.5, (2, 6, 30))):
        pre = torch.randn(shape)
        assert torch.equal(BatchTopK(k)(pre), Theirs(k)(pre))
    assert not BatchTopK(2)(-torch.ones(4, 5)).any()
    pre = torch.randn(512, 64)
    pre[3, 5] = torch.nan  # a latent that diverges must be seen
    torch.testing.assert_close(BatchTopK(2)(pre), Theirs(2)(pre), rtol=0, atol=0, equal_nan=True)
    assert BatchTopK(2)(pre).isnan().sum() == 1


def test_batch_topk_keeps_the_largest_of_the_batch():
    from sae_variants.ops.batch_topk import BatchTopK

    pre = torch.tensor([[5.0, 4.0, 3.0], [1.0, -2.0, 2.0]])
    assert BatchTopK(1.5)(pre).tolist() == [[5.0, 4.0, 3.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, marks=pytest.mark.slow)
        for order in ("import sae_lens, sae_variants", "import sae_variants, sae_lens")
    ],
)
def test_sae_lens_knows_our_architectures_whatever_is_imported_first(order):
    script = f"{order}; from sae_lens.registry import get_sae_training_class; print(get_sae_training_class('temporal_consistency')[0].__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "TemporalTrainingSAE", done.stderr


def test_fields_of_saelens_that_may_be_none_stay_none():
    assert (
        make_config("stock:jumprelu", d_in=4, d_sae=8, pre_act_loss_coefficient=None).pre_act_loss_coefficient is None
    )
    pursuit = {"max_iterations": None, "decoder_init_norm": 1.0}
    assert make_config("stock:matching_pursuit", d_in=4, d_sae=8, **pursuit).max_iterations is None
