"""Targets: those of the package, target files, entry points of other packages, and checks before training."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from conftest import TINY, make_text

from eval_runners.commands import evaluate as eval_command
from eval_runners.harness.fit import check_context_early
from sae_variants.__main__ import main
from sae_variants.common.errors import UsageError
from sae_variants.language_model import target_files
from sae_variants.language_model.target import TextOptions, choose_target, load_target, target_names
from sae_variants.training.plan import SETTING_NAMES, TrainSettings
from sae_variants.training.recipe import check_plans, check_recipe

HOOK = "blocks.1.hook_resid_post"
BASE = 'model_name = "tiny"\nhook_name = "blocks.1.hook_resid_post"\ndataset = "text.txt"\n'


@pytest.fixture
def folder(tmp_path, model_folder, text_file):
    shutil.copytree(model_folder, tmp_path / "tiny")
    shutil.copy(text_file, tmp_path / "text.txt")
    return tmp_path


def target_file(folder, content: str, name: str = "my-own.toml") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def test_every_target_file_is_a_target_that_trains():
    for name in target_names():
        target = load_target(name)
        settings = {k: v for k, v in target.train.items() if k in SETTING_NAMES}
        assert TrainSettings(**settings).steps > 0
        assert target.title
        check_recipe(target)
        check_plans(target)


def test_texts_of_the_package_s_targets_keep_their_names():
    for name in target_names():
        target = load_target(name)
        assert (target.text_id, target.train_text_id) == (target.dataset, target.train_dataset or target.dataset)


def test_a_target_file_is_the_target_of_the_options(folder, model_folder):
    target = load_target(target_file(folder, BASE + "[train]\nk = 4\nd_sae = 64\n"))
    same = choose_target("sandbox", str(model_folder), HOOK, str(folder / "text.txt"))
    assert (target.name, target.title) == ("my-own", "my-own")
    assert (target.model_name, target.text_id, target.hook_name) == (same.model_name, same.text_id, same.hook_name)


def test_check_prints_what_it_found(folder, capsys):
    assert (
        main(["target", "check", target_file(folder, BASE + "[train]\nk = 4\ncontext_size = 33\n"), "--device", "cpu"])
        == 0
    )
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert "GPTNeoXForCausalLM, 2 layers, 128 positions" in lines["model"]
    assert lines["hook"].strip() == "blocks.1.hook_resid_post: 32 wide"
    assert lines["BOS"].strip() == "'<|end|>' (id 0)"
    assert lines["tokens of ten rows"].count(",") == 9
    assert lines["first tokens"].strip().startswith("'<|end|>' ")
    assert lines["starts with BOS"].strip() == "yes"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BASE + 'hook = "x"\n', r"unknown field of the target file .*my-own.toml 'hook': did you mean 'hook_name'"),
        (BASE.replace("hook_name", "#"), "has no field 'hook_name': a target needs model_name, hook_name, dataset"),
        (BASE + "train_dataset = 3\n", "train_dataset in .*my-own.toml must be str or None, not 3"),
        (BASE + 'train = "fast"\n', "train in .*my-own.toml must be"),
        (BASE + 'dtype = "float8"\n', "dtype in .*my-own.toml must be float32, "),
        (BASE + "x = \n", "cannot read .*my-own.toml: "),
        (BASE.replace("text.txt", "texts.txt"), "no text at .*texts.txt"),
        (BASE.replace('"tiny"', '"./tony"'), "no model folder .*tony"),
        (BASE + "[train]\nlearning_rat = 1\n", r"field in \[train\] of my-own 'learning_rat': did you mean 'learning_rate"),
        (BASE + '[train]\nlearning_rate = "x"\n', r"learning_rate in \[train\] of my-own must be float, not 'x'"),
        (BASE + "[variants.temporl]\nk = 1\n", "did you mean 'temporal'"),
        (BASE + "[variants.temporal]\nwindov = 1\n", r"\[variants.temporal\] of my-own 'windov': did you mean 'window'"),
        (BASE + '[l0."stock:standard".l1_coeff]\n30 = 1\n', r"did you mean 'l1_coefficient'"),
        (BASE + "[train]\ncontext_size = 500\n", "context_size = 500 in .* exceeds the model's 128 positions"),
        (BASE + "[train]\ncontext_size = 0\n", r"\[train\] of my-own: context_size must be at least 1, not 0"),
        (BASE + "[train]\ncontext_size = -5\n", r"\[train\] of my-own: context_size must be at least 1, not -5"),
        (BASE + '[train]\nk = "four"\n', r"k in \[train\] of my-own must be .*, not 'four'"),
        (BASE + "[train]\nk = -3\n", r"\[train\] of my-own: k must be above 0 and at most d_sae = 16384, not -3"),
        (BASE + "[variants.temporal]\nwindow = 3.5\n", r"window in \[variants.temporal\] of my-own must be int, not 3.5"),
        (BASE + "[variants.temporal]\nwindow = 1\n", r"\[variants.temporal\] of my-own: .*window must be at least 2"),
        (BASE + 'dataset_split = "tset"\n', "no split 'tset' can be chosen .*text.txt has no splits"),
        (BASE + 'text_column = "body"\n', "no column 'body' can be chosen .*text.txt has no columns"),
        (BASE + 'train_dataset = "text.txt"\n', "text.txt would be trained on and held out"),
        (BASE.replace("resid_post", "resid_pots"), "blocks.1.hook_resid_post"),
    ],
)  # fmt: skip
def test_every_field_is_checked_with_its_name(folder, content, says):
    with pytest.raises(UsageError, match=says):
        main(["target", "check", target_file(folder, content), "--device", "cpu"])


def test_a_file_is_not_named_like_a_target_of_the_package(folder):
    with pytest.raises(UsageError, match="has the name of the target 'sandbox': give the file another name"):
        load_target(target_file(folder, BASE, "sandbox.toml"))
    with pytest.raises(UsageError, match="no target file"):
        load_target(str(folder / "gone.toml"))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("core]\ncontext_siz = 3", r"\[evaluations.core\] of my-own 'context_siz': did you mean 'context_size'"),
        ("coer]\ncontext_size = 3", r"unknown evaluation in \[evaluations\] of my-own 'coer': did you mean 'core'"),
        ('core]\ncontext_size = "many"', r"context_size in \[evaluations.core\] of my-own must be int, not 'many'"),
    ],
)
def test_settings_of_evaluations_are_checked(table, says, folder):
    file = target_file(folder, f"{BASE}[evaluations.{table}\n")
    with pytest.raises(UsageError, match=says):
        eval_command.main("core", ["--sae", "random", "--target", file, "--output", str(folder / "out")])


def test_other_packages_bring_targets(folder, monkeypatch):
    package = folder / "stranger_targets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "theirs.toml").write_text(BASE.replace('"t', '"../t'))
    monkeypatch.syspath_prepend(str(folder))
    entries = [EntryPoint("their-target", "stranger_targets:theirs.toml", target_files.GROUP)]
    monkeypatch.setattr(target_files, "entry_points", lambda group: entries)
    load_target.cache_clear()
    assert "their-target" in target_names()
    assert load_target("their-target").name == "their-target"
    entries[0] = EntryPoint("their-target", "stranger_targets:nothing.toml", target_files.GROUP)
    with pytest.raises(UsageError, match=r"the target their-target has no file stranger_targets:nothing.toml"):
        target_names()
    entries[0] = EntryPoint("sandbox", "stranger_targets:theirs.toml", target_files.GROUP)
    with pytest.raises(UsageError, match="names 'sandbox' in sae_variants_targets, which is"):
        target_names()
    sys.modules.pop("stranger_targets", None)


def test_options_of_text_belong_to_dataset():
    with pytest.raises(UsageError, match="--text-column belong to --dataset"):
        choose_target("sandbox", None, None, None, TextOptions(text_column="body"))


def test_contexts_that_do_not_fit_are_refused_before_any_training(folder, model_folder):
    (folder / "one.txt").write_text(" ".join(make_text(200)))
    one = choose_target("sandbox", str(model_folder), HOOK, str(folder / "one.txt"))
    target = choose_target("sandbox", str(model_folder), HOOK, str(folder / "text.txt"))
    check_context_early(target, SimpleNamespace(context_size=128))
    with pytest.raises(UsageError, match="--context-size 129 exceeds the model's 128 positions"):
        check_context_early(target, SimpleNamespace(context_size=129))
    with pytest.raises(UsageError, match="--context-length 129 exceeds the model's 128 positions"):
        check_context_early(target, SimpleNamespace(context_length=129))
    with pytest.raises(UsageError, match="has 1 documents, none of which falls into the heldout split"):
        check_context_early(one, SimpleNamespace(context_size=32))
    words = [f"--train.{key}={value}" for key, value in TINY.items() if key not in ("window",)]
    where = ["--model", str(model_folder), "--hook-name", HOOK, "--dataset", str(folder / "one.txt")]
    folders = ["--trained", str(folder / "trained"), "--output", str(folder / "out")]
    with pytest.raises(UsageError, match="none of which falls into the heldout split"):
        eval_command.main("core", ["--sae", "stock:topk", *words, *where, *folders])
    assert not (folder / "trained").exists()
