"""SAEBench's RAVEL gives, bit for bit, what SAEBench alone gives, and the faults that we answer are still there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from conftest import evaluate, identity, linear_sae, make_model, zero
from hub import running_hub
from test_saebench import alone

from eval_runners.contract.registry import load_evaluator
from eval_runners.data.entity_prompts import file_names
from eval_runners.saebench import ravel
from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import model_folder
from sae_variants.language_model.load import load_model, load_transformers_model
from sae_variants.language_model.target import choose_target

PROMPTS = {"Size": "%s is", "Colour": "%s and", "Home": "%s or"}
ENTITIES = ("red bird", "small cat", "old river", "grey wall", "rain", "tall boat", "king", "road", "green hill", "sun")
ATTRIBUTES = tuple(f"thing:{name}" for name in PROMPTS)
SMALL = {"attributes": ATTRIBUTES, "llm_batch_size": 4, "n_generated_tokens": 2, "num_epochs": 1}


def write_prompts(folder, answers):
    """RAVEL's files of one kind of entity, whose attributes are what the language model says anyway."""
    folder.mkdir()
    contents = (
        {name: [template] for name, template in PROMPTS.items()},
        dict.fromkeys(PROMPTS.values(), "train"),
        answers,
        dict.fromkeys(answers, "train"),
    )
    for name, content in zip(file_names("thing"), contents, strict=True):
        (folder / name).write_text(json.dumps(content))
    return folder


def leave_garbage(monkeypatch):
    """Keep SAEBench from collecting garbage dozens of times, which takes most of the time of so small a run."""
    from sae_bench.evals.ravel import main, mdbm

    for module in (main, mdbm):
        monkeypatch.setattr(module, "gc", mock.Mock())


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    leave_garbage(monkeypatch)


def answers_of(target):
    """What a language model says of each entity."""
    from sae_bench.evals.ravel.generation import generate_batched

    model, tokenizer = load_transformers_model(target.model_name, "cpu", target.dtype)
    found = {}
    for entity in ENTITIES:
        ids = [tokenizer.encode(template % entity) for template in PROMPTS.values()]
        found[entity] = dict(zip(PROMPTS, generate_batched(model, tokenizer, ids, max_new_tokens=2), strict=True))
    return found


def early_target(folder, text_file):
    """A language model whose answers depend on the entity, and a hook of its first layer, which can change them."""
    make_model(folder, scale=8)
    return choose_target("sandbox", str(folder), "blocks.0.hook_resid_post", str(text_file))


@pytest.fixture(scope="module")
def early(tmp_path_factory, text_file):
    return early_target(tmp_path_factory.mktemp("ravel") / "model", text_file)


@pytest.fixture(scope="module")
def model(early):
    return load_model(early.model_name, "cpu", "float32")


@pytest.fixture(scope="module")
def answers(early):
    return answers_of(early)


@pytest.fixture
def prompts(tmp_path, answers):
    return write_prompts(tmp_path / "prompts", answers)


def run(sae, early, model, prompts, **settings):
    return evaluate("ravel", sae, early, model, prepare=True, prompts=str(prompts), **SMALL | settings)


def test_it_gives_what_saebench_alone_gives(early, model, prompts, tmp_path, monkeypatch):
    from sae_bench.evals.ravel import main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
    from sae_bench.sae_bench_utils import activation_collection

    torch.manual_seed(0)
    sae = linear_sae(early, torch.randn(32, 64), 0.2 * torch.randn(64, 32))
    found = run(sae, early, model, prompts).metrics
    assert found == run(sae, early, model, prompts).metrics  # whatever came before
    named = {"model_name": early.model_name, "llm_dtype": early.dtype}
    fields = {name: value for name, value in SMALL.items() if name != "attributes"}
    with pytest.raises(KeyError, match=early.model_name):  # it knows two models
        main.run_eval(RAVELEvalConfig(**named), [], "cpu", str(tmp_path / "none"))
    monkeypatch.setattr(main, "LLM_NAME_MAP", {early.model_name: str(model_folder(early.model_name))})
    base = tmp_path / "artifacts" / "ravel" / "base"
    base.parent.mkdir(parents=True)
    base.symlink_to(prompts)
    config = RAVELEvalConfig(**fields, **named, entity_attribute_selection={"thing": list(PROMPTS)})
    with pytest.raises(IndexError, match="too many indices"):  # it expects layers that return tuples
        alone(main, replace(config), sae, model, tmp_path)
    monkeypatch.setattr(activation_collection, "get_module", ravel.layer_module)
    expected = alone(main, replace(config), sae, model, tmp_path)
    assert found == expected
    assert 0 < found["ravel"]["isolation_score"] < 1


def test_with_no_latent_in_the_mask_every_other_attribute_stays_and_none_changes(early, model, prompts):
    unfitted = {"learning_rate": 0.0}  # the mask stays empty
    kept = run(identity(early), early, model, prompts, **unfitted)
    assert kept.values == {"disentanglement_score": 0.5, "cause_score": 0.0, "isolation_score": 1.0}
    lost = run(zero(early), early, model, prompts, **unfitted)
    assert lost.values["isolation_score"] < 1
    assert lost.failures == ["no latent fires on any entity"]


def test_where_no_answer_differs_in_its_first_token_there_is_no_score(target, prompts, tmp_path):
    """The session's model begins with the same token whatever the entity: SAEBench takes the mean of nothing."""
    same = write_prompts(tmp_path / "same", answers_of(target))
    with pytest.raises(UsageError, match="begin with the same token, or all with another, in every pair"):
        run(identity(target), target, None, same)


def test_prompts_that_the_model_completes_wrongly_are_left_out(early, model, tmp_path, answers):
    wrong = {**answers, "sun": dict.fromkeys(PROMPTS, "nothing that it says")}
    evaluation = run(identity(early), early, model, write_prompts(tmp_path / "wrong", wrong))
    rows = evaluation.unstructured["attributes"]
    assert [(row["prompts"], row["correct"]) for row in rows] == [(10, 9)] * 3
    evaluator = load_evaluator("ravel")
    result = {"eval_result_unstructured": evaluation.unstructured}
    assert evaluator.summary_lines(result)[0].startswith("the language model completes 27 of 30 prompts correctly")
    assert [row["attribute"] for row in evaluator.detail_rows(result)] == list(PROMPTS)


def test_a_model_that_cannot_do_the_task_is_named(early, model, tmp_path, answers):
    wrong = write_prompts(tmp_path / "wrong", {entity: dict.fromkeys(PROMPTS, "no") for entity in answers})
    with pytest.raises(
        UsageError, match=r"cannot do the task: it completes 0 of 10 prompts on Size of thing correctly"
    ):
        run(identity(early), early, model, wrong)
    with pytest.raises(UsageError, match="--llm-batch-size 99 pairs for the fit and for the test"):
        run(identity(early), early, model, write_prompts(tmp_path / "right", answers), llm_batch_size=99)


def test_the_prompts_come_from_the_hub(early, model, prompts, tmp_path, monkeypatch):
    local = run(identity(early), early, model, prompts)
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.datasets["adamkarvonen/ravel_prompts"] = {path.name: path.read_bytes() for path in prompts.iterdir()}
        found = run(identity(early), early, model, "adamkarvonen/ravel_prompts")
        with pytest.raises(
            UsageError, match="cannot get the prompts org/none on the Hugging Face Hub: the Hub has nothing"
        ):
            run(identity(early), early, model, "org/none")
    assert found.values == local.values


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "cannot get the prompts adamkarvonen/ravel_prompts on the Hugging Face Hub: HF_HUB_OFFLINE is set"),
        ({"prompts": "nowhere"}, "--prompts nowhere is neither a folder nor a dataset on the Hub, such as ORG/NAME"),
        ({"attributes": ("Country",)}, "--attributes are written KIND:ATTRIBUTE, such as city:Country, not 'Country'"),
        ({"attributes": ("city:Country",)}, "--attributes must name two of city at least"),
        ({"train_test_split": 1.0}, "--train-test-split must be between 0 and 1, not 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused_beforehand(early, settings, says):
    evaluator = load_evaluator("ravel")
    with pytest.raises(UsageError, match=re.escape(says)):
        evaluator.prepare(early, evaluator.settings_class(**settings))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (0, None, "has no file ravel_thing_attribute_to_prompts.json: check --prompts and --attributes"),
        (0, "[]", "must hold a JSON object that is not empty"),
        (0, "{", "as JSON"),
        (0, '{"Size": ["no place"]}', "each prompt must hold %s once, unlike 'no place'"),
        (2, '{"sun": {"Colour": "x"}}', "the thing 'sun' has no attribute 'Size'"),
    ],
)
def test_files_that_cannot_work_are_refused_beforehand(early, prompts, file, content, says):
    path = prompts / file_names("thing")[file]
    path.unlink()
    if content is not None:
        path.write_text(content)
    evaluator = load_evaluator("ravel")
    with pytest.raises(UsageError, match=re.escape(says)):
        evaluator.prepare(early, evaluator.settings_class(prompts=str(prompts), attributes=ATTRIBUTES))


def test_other_hooks_and_attributes_are_refused(early, prompts):
    evaluator = load_evaluator("ravel")
    with pytest.raises(UsageError, match=r"RAVEL changes blocks\.N\.hook_resid_post only"):
        evaluator.prepare(replace(early, hook_name="blocks.1.hook_mlp_out"), evaluator.settings_class())
    given = evaluator.settings_class(prompts=str(prompts), attributes=("thing:Sise", "thing:Home"))
    with pytest.raises(UsageError, match="Size"):
        evaluator.prepare(early, given)


def test_the_defaults_are_saebench_s():
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig

    host, settings = RAVELEvalConfig(), load_evaluator("ravel").settings_class()
    for name in vars(settings).keys() - {"prompts", "attributes", "llm_batch_size"}:  # its command line sets the size
        assert getattr(settings, name) == getattr(host, name), name
    selected = [f"{kind}:{name}" for kind, names in host.entity_attribute_selection.items() for name in names]
    assert list(settings.attributes) == selected


def test_a_layer_gives_its_hooks_a_tuple_whatever_it_returns():
    for returned in (torch.ones(2), (torch.ones(2), "rest")):
        layer = torch.nn.Identity()
        ravel._Layer(layer).register_forward_hook(lambda module, inputs, output: (output[0] + 1, *output[1:]))
        out = layer(returned)
        assert torch.equal(out[0] if isinstance(returned, tuple) else out, torch.full((2,), 2.0))
