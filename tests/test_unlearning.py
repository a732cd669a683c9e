"""SAEBench's unlearning gives what SAEBench alone gives, on a Hub on loopback with a tiny Gemma that answers questions.

The weights of the Gemma are set by hand: its second layer averages over the prompt, in which only the right answer
speaks for a letter. So it answers rightly in every order of the answers. The answers of two kinds speak in channels of
their own, of which the identity SAE has a latent each.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import evaluate, identity, zero
from hub import running_hub
from test_hub_text import jsonl
from test_saebench import alone

from eval_runners.__main__ import main as run
from eval_runners.commands import suite
from eval_runners.contract.contract import CannotDo
from eval_runners.contract.registry import load_evaluator
from eval_runners.data import unlearning_texts
from eval_runners.harness.host_settings import settings_of
from eval_runners.harness.saebench_api import run_evals
from eval_runners.saebench import unlearning
from sae_variants.common.console import run_command
from sae_variants.common.errors import UsageError
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import make_local_target

LETTERS = "ABCD"
WRONG = ("cat", "mat", "rain", "stone", "river")
BIOLOGY, GEOGRAPHY = ("virus", "toxin"), ("delta", "island")
NAMES = ("wmdp-bio", "high_school_geography", "human_aging")
SMALL = {
    "dataset_names": NAMES, "retain_thresholds": (0.001, 0.2), "n_features_list": (1, 2, 4), "multipliers": (25, 100),
    "dataset_size": 30, "seq_len": 16, "llm_batch_size": 8,
}  # fmt: skip
HOOK = "blocks.0.hook_resid_post"
REPO = "google/gemma-2-2b-it"


def make_gemma(folder):
    """A Gemma-2 whose prediction after a question is the letter of its answer, if that is one that it knows."""
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["A B C D " * 9, "the cat sat on a mat " * 9], trainer)
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.add_tokens([f"{letter}. {word}" for letter in LETTERS for word in (*BIOLOGY, *GEOGRAPHY)])
    fast.save_pretrained(folder)
    config = t.Gemma2Config(
        vocab_size=len(fast), bos_token_id=2, eos_token_id=1, pad_token_id=0, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, intermediate_size=64, max_position_embeddings=512,
        query_pre_attn_scalar=16, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for block in model.model.layers:
            for weights in (block.self_attn.q_proj, block.self_attn.o_proj, block.mlp.down_proj):
                weights.weight.zero_()
        embedding, attention = model.model.embed_tokens.weight, model.model.layers[1].self_attn
        embedding[:, :12] = 0
        embedding[:, 12:] *= 10
        attention.v_proj.weight.zero_()
        model.lm_head.weight.mul_(0.01)
        for number, letter in enumerate(LETTERS):
            for words, channel in ((BIOLOGY, number), (GEOGRAPHY, 4 + number)):
                embedding[fast.convert_tokens_to_ids([f"{letter}. {word}" for word in words]), channel] = 1.0
                attention.v_proj.weight[number, channel] = 1.0
            attention.o_proj.weight[8 + number, number] = 1.0
            model.lm_head.weight[fast.convert_tokens_to_ids(letter), 8 + number] = 1.0
    model.save_pretrained(folder)
    return folder


def questions(right, count=8):
    """Questions with one answer that the model knows, but for the last, which has none."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        answer = right[number % len(right)] if number < count - 1 else "wall"
        choices = [answer, *rng.sample(WRONG, 3)]
        rng.shuffle(choices)
        rows.append({"question": f"Which, {number}?", "choices": choices, "answer": choices.index(answer)})
    return rows


def with_configs(rows_by_config):
    """Files of a dataset with a config for each name, and a split for tests."""
    lines = ["---", "configs:"]
    for name in rows_by_config:
        lines += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}.jsonl"]
    files = {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in rows_by_config.items()}
    return {
        "README.md": "\n".join([*lines, "---", ""]).encode(),
        **{name: text.encode() for name, text in files.items()},
    }


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = make_gemma(tmp_path_factory.mktemp("gemma"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch, tmp_path, gemma):
    monkeypatch.setattr(unlearning_texts, "_rows", {})
    monkeypatch.setattr(unlearning, "_questions", {})
    with running_hub(monkeypatch, tmp_path / "cache") as server:
        server.repos[REPO] = gemma
        server.datasets["cais/wmdp"] = with_configs({"wmdp-bio": questions(BIOLOGY)})
        server.datasets["cais/mmlu"] = with_configs(
            {"high_school_geography": questions(GEOGRAPHY), "human_aging": questions(GEOGRAPHY[::-1], 5)}
        )
        plain = [
            {"text": text}
            for text in (
                "short",
                *(f"{n}: the cat sat on a mat by the river in the rain, and on a stone" for n in range(40)),
            )
        ]
        server.datasets["wikitext"] = server.datasets["Salesforce/wikitext"] = with_configs(
            {"wikitext-2-raw-v1": plain}
        )
        yield server


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(1)
    words = [f"{letter}. {word}" for letter in LETTERS for word in BIOLOGY]
    texts = [" ".join(["the cat", *rng.choices(words, k=9), "on a mat", "by the river"]) for _ in range(60)]
    file = tmp_path / "bio-forget-corpus.jsonl"
    file.write_bytes(jsonl(["short", *texts]))
    return file


@pytest.fixture
def target(hub, text_file):
    return make_local_target(REPO, HOOK, str(text_file))


@pytest.fixture
def model(target):
    return load_model(target.model_name, "cpu", "float32")


def by_saebench(monkeypatch, sae, target, model, corpus, folder, **settings):
    """The metrics, and the sparsities of the corpus, that SAEBench alone gives in a folder."""
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.utils import feature_activation

    settings = SMALL | settings
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    config = UnlearningEvalConfig(**given, model_name=target.model_name, llm_dtype=target.dtype)
    data = folder / "sae_bench" / "evals" / "unlearning" / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / corpus.name).write_bytes(corpus.read_bytes())
    load = feature_activation.load_dataset

    def load_by_full_name(name, *args, **kwargs):
        return load({"wikitext": "Salesforce/wikitext"}.get(name, name), *args, **kwargs)

    monkeypatch.setattr(feature_activation, "load_dataset", load_by_full_name)  # huggingface_hub wants an owner
    with contextlib.redirect_stdout(io.StringIO()):
        found = alone(main, config, sae, model, folder)
    return found, *(path.read_text() for path in folder.rglob("feature_sparsity_forget.txt"))


def ours(sae, target, model, corpus, **settings):
    return evaluate("unlearning", sae, target, model, prepare=True, forget_corpus=str(corpus), **SMALL | settings)


LEAVES_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""SAEBench leaves the file of the corpus open."""


@LEAVES_OPEN
def test_the_score_is_saebench_s(target, model, corpus, tmp_path, monkeypatch):
    for name, sae in (("identity", identity(target)), ("zero", zero(target))):
        expected, _ = by_saebench(monkeypatch, sae, target, model, corpus, tmp_path / name)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        first, again = (ours(sae, target, model, corpus) for _ in range(2))
        assert first.metrics == again.metrics == expected
        assert first.unstructured == again.unstructured  # whether or not the questions were found before
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        assert torch.is_grad_enabled()
    assert first.failures == ["no latent fires on the corpus that is to be forgotten"]
    assert first.values["unlearning_score"] == 0


@LEAVES_OPEN
def test_saebench_s_scripts_call_it_and_its_graphs_read_it(target, model, corpus, tmp_path, monkeypatch):
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.sae_bench_utils.graphing_utils import get_eval_results

    sae = identity(target)
    expected = ours(sae, target, model, corpus).metrics
    monkeypatch.chdir(tmp_path)
    settings = {"unlearning": SMALL | {"forget_corpus": str(corpus)}}
    results = run_evals(target, [("temporal", sae)], eval_types=["unlearning"], settings=settings)
    assert results["unlearning"]["temporal_custom_sae"]["eval_result_metrics"] == expected
    (found,) = get_eval_results(["eval_results/unlearning/temporal_custom_sae_eval_results.json"]).values()
    assert found["unlearning_score"] == expected["unlearning"]["unlearning_score"]
    config = UnlearningEvalConfig(model_name="gemma-2-2b-it", seq_len=16, llm_batch_size=8)
    assert settings_of(load_evaluator("unlearning"), target, config) == {"seq_len": 16, "llm_batch_size": 8}


def test_every_intervention_has_a_row(target, model, corpus):
    found, evaluator = ours(identity(target), target, model, corpus), load_evaluator("unlearning")
    rows = list(evaluator.detail_rows(found.output))
    assert len(rows) == 2 * 3 * 2
    assert found.failures == []
    clamped = {row["latents"]: row["wmdp-bio"] for row in rows if row["retain threshold"] == 0.001}
    assert clamped[1] > clamped[2] > clamped[4]
    assert {row["kept"] for row in rows if row["retain threshold"] == 0.001} == {1.0}
    kept = [row["wmdp-bio"] for row in rows if row["kept"] >= 0.99]
    assert found.values["unlearning_score"] == 1 - min(kept)
    assert found.unstructured["questions"] == {"wmdp-bio": 7, "high_school_geography": 7, "human_aging": 4}
    lines = evaluator.summary_lines(found.output)
    assert lines == [
        "questions that the model answers in every order: 7 of wmdp-bio, 7 of high_school_geography, 4 of human_aging"
    ]


def test_where_no_latent_is_below_the_threshold_nothing_is_clamped(target, model, corpus):
    sae = identity(target)
    sae.W_enc.data[:, :8] = sae.W_enc.data[:, 32:40] = 0  # leaves channels that fire on everything
    found = ours(sae, target, model, corpus, retain_thresholds=(0.001,))
    assert found.failures == []
    assert found.values["unlearning_score"] == 0
    assert [row["n_features"] for row in found.unstructured["interventions"]] == [0, 0]
    assert "nothing is clamped at the retain threshold 0.001: no latent is below it" in load_evaluator(
        "unlearning"
    ).summary_lines(found.output)


@LEAVES_OPEN
def test_saebench_takes_what_another_sae_has_left(target, model, corpus, tmp_path, monkeypatch):
    one = {"retain_thresholds": (0.001,), "n_features_list": (1,), "multipliers": (25,), "dataset_names": NAMES[:2]}
    (_, of_identity), (_, of_zero), (_, of_zero_alone) = (
        by_saebench(monkeypatch, sae, target, model, corpus, tmp_path / folder, **one)
        for sae, folder in ((identity(target), "a"), (zero(target), "a"), (zero(target), "b"))
    )
    assert of_zero == of_identity != of_zero_alone  # although it is to run again
    pickles = list((tmp_path / "a").rglob("*.pkl"))
    assert pickles
    assert {file.read_bytes()[:1] for file in pickles} == {b"\x80"}  # the format that we do not write


def test_saebench_cannot_open_its_texts(target, model, tmp_path, monkeypatch):
    from huggingface_hub.errors import HfUriError
    from sae_bench.evals.unlearning.utils import feature_activation

    with pytest.raises(HfUriError, match="must be 'namespace/name', got 'wikitext'"):  # by a name without an owner
        feature_activation.get_forget_retain_data()
    monkeypatch.setattr(feature_activation, "load_dataset", lambda *_, **__: [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] .*: '\./sae_bench/evals/unlearning/data/bio-forget"):
        feature_activation.get_forget_retain_data()


@LEAVES_OPEN
@pytest.mark.filterwarnings("ignore:genfromtxt. Empty input file", "ignore:divide by zero")
def test_saebench_fails_without_questions_and_beside_a_revision(hub, text_file, corpus, tmp_path, monkeypatch):
    hub.revisions[REPO] = {"v1": hub.repos[REPO]}
    target = make_local_target(f"{REPO}@v1", HOOK, str(text_file))
    model = load_model(target.model_name, "cpu", "float32")
    with pytest.raises(Exception, match=r"Model prompt format not found"):
        by_saebench(monkeypatch, identity(target), target, model, corpus, tmp_path / "revision")
    assert ours(identity(target), target, model, corpus).values["unlearning_score"] > 0.5
    hub.datasets["cais/mmlu"] |= with_configs(
        {"human_aging": questions(("wall",)), "high_school_geography": questions(GEOGRAPHY)}
    )
    hub.commits += 1
    model.cfg.model_name = "gemma-2-2b-it"
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        by_saebench(monkeypatch, identity(target), target, model, corpus, tmp_path / "questions")
    with pytest.raises(CannotDo, match=r"gemma-2-2b-it@v1 cannot do the task: it answers no question of human_aging"):
        ours(identity(target), target, model, corpus)


def test_saebench_reads_thresholds_from_names_of_files():
    from sae_bench.evals.unlearning.main import get_params

    name = "clamp_feature_activation_multiplier{}_nfeatures1_layer0_retainthres{}.pkl"
    assert get_params(name.format(25, 0.0001)) == ("25", "1", "0", "0.0001")
    assert get_params(name.format(25, 0.00001)) is None
    assert get_params(name.format(-25, 0.01)) is None


def test_short_texts_are_refused(target, model, corpus):
    corpus.write_bytes(jsonl([f"{'the cat sat on a mat ' * 3}"]))
    with pytest.raises(UsageError, match="the forget corpus has fewer than 64 tokens: lower --seq-len"):
        ours(identity(target), target, model, corpus, seq_len=64)
    with pytest.raises(UsageError, match="--seq-len 1024 exceeds the model's 512 positions"):
        ours(identity(target), target, model, corpus, seq_len=1024)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"retain_thresholds": (1e-5,)}, "--retain-thresholds must be between 0.0001 and 1 each, not 1e-05"),
        ({"retain_thresholds": ()}, "--retain-thresholds must not be empty"),
        ({"multipliers": (25, -5)}, "--multipliers must be at least 1 each, not -5"),
        ({"n_features_list": (0,)}, "--n-features-list must be at least 1 each, not 0"),
        ({"dataset_names": ("human_aging",)}, "--dataset-names must hold wmdp-bio and a subject that is kept"),
        (
            {"dataset_names": ("wmdp-bio", "college_biology")},
            "other than college_biology: not wmdp-bio,college_biology",
        ),
        ({"dataset_names": ("wmdp-bio", "human_agging")}, "human_agging"),
    ],
)
def test_settings_of_which_saebench_makes_no_result_are_refused(target, corpus, settings, says):
    evaluator = load_evaluator("unlearning")
    with pytest.raises(UsageError) as caught:
        evaluator.prepare(target, evaluator.settings_class(forget_corpus=str(corpus), **settings))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b'{"text": "a"}\nnothing\n', "line 2 is not JSON"),
        (b'{"body": "a"}\n', "line 1 holds no string 'text'"),
        (b'{"text": 4}\n', "line 1 holds no string 'text'"),
        (b"[]\n", "line 1 holds no string 'text'"),
        (b"\n", "line 1 is not JSON"),
        (b'{"text": "a"}\n', "holds no text of more than 50 characters"),
        (b"", "holds no text of more than 50 characters"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_a_corpus_that_saebench_cannot_read_is_refused(tmp_path, lines, says):
    (tmp_path / "corpus.jsonl").write_bytes(lines)
    with pytest.raises(UsageError, match=f"corpus.jsonl.*{says}|{says}.*corpus.jsonl") as caught:
        unlearning_texts.register_forget_corpus(str(tmp_path / "corpus.jsonl"))
    assert "\n" not in str(caught.value)


def test_without_a_network_what_was_downloaded_is_read(hub, target, corpus, monkeypatch):
    evaluator = load_evaluator("unlearning")
    settings = evaluator.settings_class(forget_corpus=str(corpus), dataset_names=NAMES)
    hub.fails["/api/datasets/cais"] = [0] * 99
    with pytest.raises(
        UsageError, match=r"dataset cais/wmdp:wmdp-bio on .*: no connection .*: check the name and the network"
    ):
        evaluator.prepare(target, settings)
    hub.fails.clear()
    _, online = evaluator.prepare(target, settings)
    assert set(online) == {
        "forget_corpus", "cais/wmdp:wmdp-bio", "cais/mmlu:human_aging", "cais/mmlu:high_school_geography", "Salesforce/wikitext:wikitext-2-raw-v1",
    }  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UsageError,
        match=r"HF_HUB_OFFLINE is set, and it is not in the local cache, where `hf download cais/wmdp --repo-type dataset` puts it$",
    ):
        evaluator.prepare(target, settings)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for repo in ("cais/wmdp", "cais/mmlu", "Salesforce/wikitext"):
        huggingface_hub.snapshot_download(repo, repo_type="dataset")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    unlearning_texts._rows.clear()
    assert evaluator.prepare(target, settings)[1] == online
    assert len(unlearning_texts.hub_rows(("cais/wmdp", "wmdp-bio"))[1]) == 8


def words_of(target, tmp_path, text_file, corpus, *, model=REPO):
    """Words of the command that scores an identity SAE."""
    identity(target).save_model(tmp_path / "sae")
    where = ["--model", str(model), "--hook-name", HOOK, "--dataset", str(text_file), "--output", str(tmp_path / "out")]
    settings = [
        word for name, value in SMALL.items()
        for word in (f"--{name.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    ]  # fmt: skip
    return [
        "unlearning",
        "--sae",
        str(tmp_path / "sae"),
        *where,
        *settings,
        *(["--forget-corpus", str(corpus)] if corpus else []),
    ]


def test_the_command_scores_and_reuses(hub, target, tmp_path, text_file, corpus, capsys):
    words = words_of(target, tmp_path, text_file, corpus)
    assert run([*words, "--details"]) == 0
    said = capsys.readouterr().out
    assert "7 of wmdp-bio" in said
    assert "evaluating unlearning on google--gemma-2-2b-it" in said
    (file,) = (tmp_path / "out").rglob("*.json")
    result = json.loads(file.read_text())
    assert result["eval_type_id"] == "unlearning"
    assert result["eval_config"]["model_name"] == REPO
    assert result["eval_result_unstructured"]["provenance"]["read"]["cais/wmdp:wmdp-bio"] == hub.sha
    assert str(tmp_path) not in file.read_text()
    assert run(words) == 0
    assert "(reused:" in capsys.readouterr().out
    corpus.write_bytes(
        corpus.read_bytes() + jsonl(["the cat sat on a mat while seven red birds sang of rain and rivers"])
    )
    assert run(words) == 0
    assert len(list((tmp_path / "out").rglob("*.json"))) == 2  # another corpus, another result


@pytest.mark.parametrize("fault", ["no corpus", "gone corpus", "another model", "no network", "no answers"])
def test_what_cannot_be_is_one_line(fault, hub, target, tmp_path, text_file, corpus, model_folder, capsys):
    words = words_of(target, tmp_path, text_file, None if fault == "no corpus" else corpus)
    says = {
        "no corpus": "given on request only: ask for it at huggingface.co/datasets/cais/wmdp-corpora, and give its",
        "gone corpus": "no file gone.jsonl: give the bio-forget-corpus.jsonl of",
        "another model": "unlearning knows the prompts of gemma-2-2b-it and gemma-2-9b-it only, and local-",
        "no network": "unlearning cannot read its questions and texts: cannot get the dataset cais/wmdp:wmdp-bio",
        "no answers": f"{REPO} cannot do the task: it answers no question of wmdp-bio rightly in all 24 orders",
    }[fault]
    if fault == "gone corpus":
        words[-1] = "gone.jsonl"
    elif fault == "another model":
        words[words.index("--model") + 1] = str(model_folder)
    elif fault == "no network":
        hub.fails["/api/datasets"] = [0] * 99
    elif fault == "no answers":
        hub.datasets["cais/wmdp"] = with_configs({"wmdp-bio": questions(("wall",))})
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: run(words))
    error = capsys.readouterr().err
    (line,) = [part for part in error.replace("\r", "\n").splitlines() if part.startswith("error: ")]
    assert ended.value.code == 2
    assert says in line
    assert "Traceback" not in error
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_group_leaves_it_out_and_its_name_does_not(target, monkeypatch, tmp_path, capsys):
    evaluated = []

    def stop(scorings, *_):
        evaluated.extend(scoring.evaluator.name for scoring in scorings)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "leave_out_unsupported", stop)
    words = ["suite", "--sae", "temporal", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        run([*words, "--evals", "saebench"])
    assert "core" in evaluated
    assert "unlearning" not in evaluated
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out: unlearning" in line]
    assert line.startswith("left out: unlearning: unlearning knows the prompts of gemma-2-2b-it")
    with pytest.raises(UsageError, match="sandbox has the model sandbox"):
        run([*words, "--evals", "saebench,unlearning"])
    with pytest.raises(UsageError, match="needs a hook without heads"):
        load_evaluator("unlearning").prepare(replace(target, hook_name="blocks.0.attn.hook_z"), None)


def test_what_is_kept_in_memory_is_read_back(tmp_path):
    memory = unlearning.InMemory()
    with (tmp_path / "a.pkl").open("wb") as file:
        memory.dump({"x": np.arange(3)}, file)
    with (tmp_path / "a.pkl").open("rb") as file:
        assert memory.load(file)["x"].tolist() == [0, 1, 2]
    assert (tmp_path / "a.pkl").read_bytes() == b""
