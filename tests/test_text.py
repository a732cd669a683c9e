"""Text on this machine: every format and encoding gives the same documents, and what is no text is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from array import array
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import zstandard
from conftest import make_text

from sae_variants.common.errors import UsageError
from sae_variants.language_model import contexts, pretokenized
from sae_variants.language_model.contexts import cut_contexts, read_contexts, target_documents, text_dataset
from sae_variants.language_model.documents import Chat, TokenIds
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import TextOptions, choose_target
from sae_variants.language_model.text import local_documents, local_texts, read_dataset

TEXTS = [*make_text(60), "naïve café 模型 😀", 'a\u2028b, "quoted"\tc\x0bd']
HOOK = "blocks.1.hook_resid_post"


def jsonl(texts=TEXTS, **more) -> str:
    return "".join(json.dumps({**more, "text": text}, ensure_ascii=False) + "\n" for text in texts)


def write(path, kind: str):
    """TEXTS in a file or folder of that kind; its path."""
    from datasets import Dataset, DatasetDict

    frame, path = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS}), path / f"text{kind}"
    writers = {
        ".txt": lambda: path.write_text("\n\n".join(TEXTS), "utf-8"),
        ".txt.gz": lambda: path.write_bytes(gzip.compress("\n\n".join(TEXTS).encode())),
        ".jsonl": lambda: path.write_text(jsonl(), "utf-8"),
        ".ndjson": lambda: path.write_text(jsonl(), "utf-8"),
        ".JSONL": lambda: path.write_text(jsonl(), "utf-8"),
        ".jsonl.gz": lambda: path.write_bytes(gzip.compress(jsonl().encode())),
        ".jsonl.zst": lambda: path.write_bytes(
            zstandard.compress(jsonl(TEXTS[:20]).encode()) + zstandard.compress(jsonl(TEXTS[20:]).encode())
        ),
        ".rows.json": lambda: path.write_text(json.dumps([{"text": text} for text in TEXTS])),
        ".lines.json": lambda: path.write_text(jsonl(), "utf-8"),
        ".columns.json": lambda: path.write_text(json.dumps({"text": TEXTS, "id": [1] * len(TEXTS)})),
        ".data.json": lambda: path.write_text(json.dumps({"version": 1, "data": [{"text": text} for text in TEXTS]})),
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        ".parquet": lambda: frame.to_parquet(path),
        ".arrow": lambda: frame.to_feather(path),
        "-saved": lambda: Dataset.from_pandas(frame).save_to_disk(path),
        "-splits": lambda: DatasetDict(
            {"train": Dataset.from_pandas(frame), "test": Dataset.from_dict({"text": ["x"]})}
        ).save_to_disk(path),
    }  # fmt: skip
    writers[kind]()
    return path


KINDS = [
    ".txt", ".txt.gz", ".jsonl", ".ndjson", ".JSONL", ".jsonl.gz", ".jsonl.zst", ".rows.json", ".lines.json", ".columns.json",
    ".data.json", ".csv", ".tsv", ".parquet", ".arrow", "-saved", "-splits",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_documents(kind, tmp_path):
    path = write(tmp_path, kind)
    assert [*read_dataset(str(path))] == list(dict.fromkeys(TEXTS))
    train, heldout = (local_texts(str(path), part) for part in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(set(TEXTS))
    assert heldout
    assert not set(train) & set(heldout)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_caches_beside_a_saved_dataset_are_not_read_and_a_split_is_chosen(tmp_path):
    saved = write(tmp_path, "-saved")
    (saved / "cache-1.arrow").write_bytes(b"not read")
    assert len(read_dataset(str(saved))) == len(set(TEXTS))
    assert read_dataset(str(write(tmp_path, "-splits")), "test") == ("x",)
    with pytest.raises(UsageError, match="did you mean 'test'"):
        read_dataset(str(tmp_path / "text-splits"), "tset")


def test_a_folder_of_texts_is_read_whole(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n\n".join(make_text(20 * (number + 1))))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").write_text("text\nin a folder\n")
    for hidden in (".git", ".cache/deep"):
        (tmp_path / hidden).mkdir(parents=True)
        (tmp_path / hidden / "x.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert len(read_dataset(str(tmp_path))) == 61
    assert read_dataset(str(tmp_path / ".git")) == ("hidden",)


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8-sig", ""), ("utf-16", ""), ("utf-32", ""), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"),
        ("utf-32-le", "UTF-32"), ("utf-32-be", "UTF-32"),
        ("cp1252", "is read as cp1252"), ("latin-1", "not UTF-8"),
    ],
)  # fmt: skip
def test_encodings_are_detected(kind, encoding, note, tmp_path, capsys):
    texts = ["a café in the old town of Málaga", "plain", "naïve"]
    path = tmp_path / f"t{kind}"
    content = {".txt": "\n\n".join(texts), ".jsonl": jsonl(texts), ".csv": "\n".join(["text", *texts]) + "\n"}[kind]
    path.write_bytes(content.encode(encoding))
    assert list(read_dataset(str(path))) == texts
    error = capsys.readouterr().err
    assert error.count("\n") == (1 if note else 0)
    assert note in error


RUSSIAN = "Привет, как дела? Сегодня хорошая погода, и мы пойдём гулять в парк. "
JAPANESE = "今日は天気がいいので、公園を散歩しましょう。これはテストのためのファイルです。"
CHINESE = "今天天气很好，我们去公园散步。你好世界，这是一个测试文件，用于检查编码。"
FRENCH = "Le cœur a ses raisons. L’été dernier, nous étions allés à la plage près de l'île. "
SPANISH = "El señor Martínez vivió muchos años en Málaga, según él mismo decía. También trabajó en Perú. "
POLISH = "W Szczebrzeszynie chrząszcz brzmi w trzcinie, a żółta łąka pachnie jaśminem. "


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (RUSSIAN, "cp866"), (RUSSIAN, "utf-16-le"), (CHINESE, "gbk"),
        (CHINESE, "big5"), (CHINESE, "utf-16-be"), (JAPANESE, "shift-jis"), (JAPANESE, "euc-jp"),
        (JAPANESE, "utf-16-le"), (FRENCH, "mac-roman"), (FRENCH, "cp850"), (SPANISH, "mac-roman"),
        (POLISH, "cp1250"), (POLISH, "iso8859-2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("times", [1, 30])
def test_other_encodings_and_what_is_no_text_are_refused(text, encoding, times, tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(f"{text * times}\n\n{text}".encode(encoding, "replace"))
    with pytest.raises(UsageError, match=r"cannot read .*t.txt: it is .*: convert it by `iconv -f ENCODING -t UTF-8`"):
        read_dataset(str(path))


def test_western_text_is_read_whatever_its_language(tmp_path, capsys):
    texts = [
        FRENCH,
        "«\xa0Il a été là…\xa0»",
        SPANISH,
        "Það er gaman að læra íslensku þó að hún sé erfið.",
        "MÁLAGA",
        "Räksmörgås…",
    ]
    (tmp_path / "t.txt").write_bytes("\n\n".join(texts).encode("cp1252"))
    assert list(read_dataset(str(tmp_path / "t.txt"))) == texts
    assert "is read as cp1252, which is right for Western European text; otherwise" in capsys.readouterr().err


def test_a_line_of_white_space_is_a_blank_line(tmp_path):
    (tmp_path / "t.txt").write_text("a\n \nb\n\t \nc\r\n\r\nd\n\n\ne\nf")
    assert read_dataset(str(tmp_path / "t.txt")) == ("a", "b", "c", "d", "\ne\nf")


def test_the_locale_does_not_matter(tmp_path):
    path = write(tmp_path, ".txt")
    code = "import sys; from sae_variants.language_model.text import read_dataset; sys.exit(len(read_dataset(sys.argv[1])))"
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=env, check=False).returncode == len(set(TEXTS))


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv"])
def test_windows_line_ends_change_nothing(kind, tmp_path):
    texts = ["one\ntwo", "three"]
    content = {".txt": "\n\n".join(texts), ".jsonl": jsonl(texts), ".csv": 'text,n\n"one\ntwo",1\nthree,2\n'}[kind]
    (tmp_path / f"t{kind}").write_bytes(content.replace("\n", "\r\n").encode())
    assert [text.replace("\r", "") for text in read_dataset(str(tmp_path / f"t{kind}"))] == texts


def test_other_columns_never_matter(tmp_path):
    odd = {"id": 10**30, "n": "x", "deep": [[{}]], "huge": None}
    lines = jsonl(["a", "b"], **odd) + '{"text": "c", "id": ' + "1" * 5000 + ', "n": NaN}\n'
    (tmp_path / "t.jsonl").write_text(lines)
    assert read_dataset(str(tmp_path / "t.jsonl")) == ("a", "b", "c")


def test_empty_and_null_rows_are_counted(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": ""}\n{"text": null}\n{"n": 1}\n{"text": " "}\n')
    assert read_dataset(str(tmp_path / "t.jsonl")) == ("a",)
    assert "2 empty and 2 null rows are skipped" in capsys.readouterr().err


def test_nul_bytes_long_rows_single_rows_and_broken_surrogates(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a\\u0000b\x00c"}\n{"text": "x\\ud800y"}\n')
    assert read_dataset(str(path)) == ("a\x00b\x00c", "x\ufffdy")
    for kind, content in ((".txt", "{}"), (".jsonl", '{{"text": "{}"}}'), (".csv", "text\n{}\n")):
        long = tmp_path / f"long{kind}"
        long.write_text(content.format("word " * 2_000_000))
        assert len(read_dataset(str(long))[0]) >= 9_999_999
    with pytest.raises(UsageError, match="has 1 documents, none of which falls into the"):
        [local_texts(str(tmp_path / "long.txt"), part) for part in ("train", "heldout")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", '{"text": "a"}\n{"text": ["b"]}\n', r"t.jsonl: row 2: column text must hold text, not a list: \['b'\]"),
        ("t.jsonl", '{"text": [{"role": "user", "content": "x"}]}\n', "row 1.*read from a column messages"),
        ("t.jsonl", '{"text": 3}\n', "must hold text, not a number: 3"),
        ("t.jsonl", '{"text": true}\n', "not a truth value"),
        ("t.jsonl", '{"text": {"a": 1}}\n', "not an object"),
        ("t.jsonl", '"a"\n', "line 1 is not an object with columns, but str: 'a'"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', "cannot read .*t.jsonl: line 2: "),
        ("t.json", "[1]", "row 1 is not an object with columns, but a number: 1"),
        ("t.json", '{"text": ["a", "b"], "input_ids": [[1]]}', "columns differ in the number of rows: text has 2, input_ids has 1"),
        ("t.json", '{"text": []}', "t.json holds no text"),
        ("t.csv", "text,text\na,b\n", "has several columns 'text': rename all but one"),
        ("t.csv", ",".join(f"column {i}" for i in range(20_000)) + "\na\n", "only column 0, .*, column 39, and 19960 more: choose"),
        ("t.csv", '"a\nb",c\nx,y\n', "only a b, c: choose"),
        ("t.jsonl", json.dumps({"messages": '[{"role": "user"}]'}), "messages must hold a list of turns, not str: .*; --text-column messages"),
        ("t.jsonl", '{"tokens": "a b"}', "tokens must hold a list of token ids, not str"),
        ("t.txt", "%PDF-1.4\n1 0 obj", "it is no text"),
        ("t.txt", os.urandom(5000), "cannot read"),
        ("t.txt", bytes(5000), "it is no text"),
        ("t.json", "[{", "cannot read"),
        ("t.csv", "text,n\na,1,2\n", "row 1 has more fields than the header"),
        ("t.csv", 'text\n"never closed\n', "cannot read .*unexpected end of data"),
        ("t.csv", "body\nx\n", "has no column 'text', only body: choose one by --text-column"),
        ("t.parquet", "no parquet", "cannot read"),
        ("t.arrow", "no arrow", "cannot read"),
        ("t.txt.gz", "no gzip", "cannot read .*[Nn]ot a gzipped file"),
        ("t.txt.zst", "no zstd", "cannot read"),
        ("t.jsonl", '{"messages": [{"who": "x"}]}\n', "row 1: column messages must hold turns with role and content"),
        ("t.jsonl", '{"input_ids": [1, -2]}\n', "column input_ids must hold a list of token ids"),
        ("t.jsonl", '{"tokens": [1, 2.5]}\n', "column tokens must hold a list of token ids"),
        ("t.jsonl", '{"text": "a"}\n{"messages": [{"role": "user", "content": "x"}]}\n', "mixes text, conversations"),
        ("t.txt", b"caf\xe9 \xc3\xa9 \xc3\xa9 caf\xc3\xa9", "it is UTF-8, but for 1 bytes, the first of them byte 4"),
        ("t.txt.zst", zstandard.compress(os.urandom(5000))[:2000], "cut off"),
        ("t.txt.gz", gzip.compress(os.urandom(5000))[:2000], "cannot read"),
        ("state.json", "{}", "no .txt"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_row(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=says) as caught:
        read_dataset(str(tmp_path if name == "state.json" else tmp_path / name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def with_text(tmp_path, model_folder, lines: list[dict], **options):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return choose_target("sandbox", str(model_folder), HOOK, str(tmp_path / "t.jsonl"), TextOptions(**options))


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_go_through_the_chat_template(column, tmp_path, model_folder, model):
    keys = ("role", "content", "user") if column == "messages" else ("from", "value", "human")
    rows = [{column: [{keys[0]: keys[2], keys[1]: text}]} for text in make_text(60)]
    target = with_text(tmp_path, model_folder, rows)
    documents = list(target_documents(target, "train"))
    assert all(isinstance(document, Chat) for document in documents)
    with pytest.raises(UsageError, match="no chat template"):
        next(read_contexts(target, model, 33))
    tokenizer = model.tokenizer
    tokenizer.chat_template = "<|end|>{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    try:
        shown = next(iter(text_dataset(target, "train", tokenizer)))["text"]
        first = next(read_contexts(target, model, 33))
    finally:
        tokenizer.chat_template = None
    assert shown == "[user] " + json.loads(documents[0].turns)[0]["content"]
    assert tokenizer.decode(first).startswith("<|end|>" + shown[:20])


def test_tokenised_rows_are_used_as_they_are(tmp_path, model_folder, model):
    generator = torch.Generator().manual_seed(0)
    rows = [[0, *torch.randint(1, 300, (39,), generator=generator).tolist()] for _ in range(80)]
    target = with_text(tmp_path, model_folder, [{"input_ids": row} for row in rows])
    found = [c.tolist() for part in ("train", "heldout") for c in read_contexts(target, model, 40, part)]
    assert sorted(found) == sorted(rows)
    assert next(read_contexts(target, model, 33)).tolist() in [row[:33] for row in rows]
    with pytest.raises(
        UsageError, match=r"t.jsonl: row .* has 40 tokens: a context of 41 tokens needs rows of at least"
    ):
        next(read_contexts(target, model, 41))
    assert isinstance(next(target_documents(target, "train")), TokenIds)


def test_tokens_of_another_tokenizer_are_refused(tmp_path, model_folder, model):
    target = with_text(tmp_path, model_folder, [{"tokens": [0, number, 50_000]} for number in range(40)])
    with pytest.raises(UsageError, match=r"token 50000, but the model knows \d+: it is the text of another tokenizer"):
        next(read_contexts(target, model, 3))


@pytest.mark.parametrize(("row", "says"), [([0, 1], "has 2 tokens"), ([0, 9999, 1], "has the token 9999")])
def test_every_tokenised_row_is_checked_before_the_first_is_used(row, says, tmp_path, model_folder, model):
    rows = [[0, number // 20, number % 20] for number in range(180)]
    target = with_text(tmp_path, model_folder, [{"input_ids": ids} for ids in [*rows, row, *rows[:20]]])
    part = next(p for p in ("train", "heldout") if row in [d.ids for d in target_documents(target, p)])
    with pytest.raises(UsageError, match=rf"t.jsonl: row 181 is tokenised already, and {says}"):
        next(read_contexts(target, model, 3, part))


@pytest.mark.parametrize("texts", [["a text", [0, 1, 2]], [[0, 1, 2], "a text"]])
def test_a_stream_of_text_and_token_ids_is_refused(texts, target, model, monkeypatch):
    documents = [text if isinstance(text, str) else TokenIds(array("i", text).tobytes(), "row 2") for text in texts]
    monkeypatch.setattr(contexts, "target_documents", lambda *_: iter(documents))
    monkeypatch.setattr(contexts, "check_tokenizer", lambda *_: None)
    with pytest.raises(UsageError, match="keep them in separate files"):
        list(read_contexts(target, model, 3))


def test_a_turn_that_only_calls_tools_keeps_its_calls(tmp_path, model_folder, model):
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    (chat,) = local_documents(with_text(tmp_path, model_folder, [{"messages": turns}]).dataset, None)
    assert isinstance(chat, Chat)
    tokenizer = SimpleNamespace(chat_template="{{ m.content }}", bos_token=None)
    with pytest.raises(UsageError, match="has tool_calls, which the chat template of the model's tokenizer leaves out"):
        chat.render(tokenizer)
    tokenizer = SimpleNamespace(
        chat_template="{{ m.tool_calls }}", bos_token=None, apply_chat_template=lambda turns, tokenize: str(turns)
    )
    assert "weather" in chat.render(tokenizer)


@pytest.fixture
def pretokenised(tmp_path, model_folder):
    """A text that SAELens' pretokenize tokenised by the model's tokenizer, and the file that says by which."""
    from datasets import Dataset

    folder = tmp_path / "tokens"
    Dataset.from_list([{"input_ids": [0, number, *range(1, 9)]} for number in range(1, 80)]).save_to_disk(folder)
    target = choose_target("sandbox", str(model_folder), HOOK, str(folder))

    def tokenised_by(name):
        (folder / "sae_lens.json").write_text(json.dumps({"tokenizer_name": str(name), "context_size": 10}))
        pretokenized._tokenizer_name.cache_clear()
        return target

    return tokenised_by


def test_the_tokenizer_of_pretokenised_text_is_compared(pretokenised, tmp_path, model_folder, model, capsys):
    assert next(read_contexts(pretokenised(model_folder), model, 10)).shape == (10,)
    same = tmp_path / "renamed"
    shutil.copytree(model_folder, same)
    assert next(read_contexts(pretokenised(same), model, 10)).shape == (10,)
    assert capsys.readouterr().err == ""
    tokenizer = json.loads((same / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (same / "tokenizer.json").write_text(json.dumps(tokenizer))
    pretokenized._vocabulary.cache_clear()
    with pytest.raises(UsageError, match=r"renamed, of which token 30[01] is .*; the model's is .*: tokenise the text"):
        next(read_contexts(pretokenised(same), model, 10))
    assert next(read_contexts(pretokenised("nobody/nothing"), model, 10)).shape == (10,)
    assert "was tokenised by nobody/nothing, which could not be loaded" in capsys.readouterr().err


def test_a_token_that_the_model_does_not_know_is_refused(target, model):
    with pytest.raises(UsageError, match=r"has the token '.*', whose id \d+ exceeds the 50 that the model knows"):
        list(cut_contexts(target, model.tokenizer, 50, 33))


def test_another_column_is_another_text(tmp_path, model_folder):
    rows = [{"text": text, "body": text[::-1]} for text in make_text(50)]
    plain, other = (with_text(tmp_path, model_folder, rows, text_column=column) for column in (None, "body"))
    assert other.text_id == plain.text_id + ",column=body"
    assert set(local_documents(other.dataset, "train", "train", "body")) <= {row["body"] for row in rows}


def test_ids_of_text_are_as_ever(tmp_path, model_folder):
    from sae_variants.common.hashing import hash_files

    target = with_text(tmp_path, model_folder, [{"text": text} for text in make_text(50)])
    assert target.text_id == target.train_text_id == f"local-{hash_files([tmp_path / 't.jsonl'])}"


def test_a_text_to_train_on_leaves_the_dataset_held_out(tmp_path, model_folder):
    (tmp_path / "train.txt").write_text("\n\n".join(make_text(40)))
    (tmp_path / "eval.txt").write_text("only this")
    options = TextOptions(train_dataset=str(tmp_path / "train.txt"))
    target = choose_target("sandbox", str(model_folder), HOOK, str(tmp_path / "eval.txt"), options)
    assert list(target_documents(target, "heldout")) == ["only this"]
    assert len(list(target_documents(target, "train"))) == 40
    assert target.train_text_id != target.text_id


def test_the_text_held_out_is_not_trained_on(tmp_path, model_folder):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "t.txt").write_text("a\n\nb")
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder" / "t.txt")
    for dataset, train in (("folder/t.txt", "folder/t.txt"), ("folder/t.txt", "folder"), ("link.txt", "folder/t.txt")):
        options = TextOptions(train_dataset=str(tmp_path / train))
        with pytest.raises(UsageError, match="would be trained on and held out"):
            choose_target("sandbox", str(model_folder), HOOK, str(tmp_path / dataset), options)
    with pytest.raises(UsageError, match="sandbox would be trained on and held out"):
        choose_target("sandbox", str(model_folder), HOOK, "sandbox", TextOptions(train_dataset="sandbox"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_that_the_text_cannot_honour_are_refused(tmp_path, model_folder):
    from datasets import Dataset, DatasetDict

    (tmp_path / "t.txt").write_text("a\n\nb")
    (tmp_path / "t.jsonl").write_text('{"body": "a"}\n')
    rows = Dataset.from_dict({"body": ["x"]})
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"test": rows}).save_to_disk(tmp_path / "one_split")

    def choose(dataset, **options):
        path = dataset if dataset == "sandbox" else str(tmp_path / dataset)
        return choose_target("sandbox", str(model_folder), HOOK, path, TextOptions(**options))

    for dataset in ("t.txt", "t.jsonl", "saved", "sandbox"):
        with pytest.raises(UsageError, match=f"no split 'tset' can be chosen .*{dataset} has no splits"):
            choose(dataset, dataset_split="tset")
    with pytest.raises(UsageError, match=r"unknown split of .*one_split 'tset': did you mean 'test'"):
        choose("one_split", dataset_split="tset")
    for dataset in ("t.txt", "sandbox"):
        with pytest.raises(UsageError, match=r"no column 'body' can be chosen .* has no columns"):
            choose(dataset, text_column="body")
    for dataset in ("one_split", "saved", "t.jsonl"):
        assert read_dataset(choose(dataset, text_column="body").dataset, column="body")
    assert choose("one_split", dataset_split="test").text_id.endswith(",split=test")
    assert choose("one_split").text_id.startswith("local-")
    assert choose("t.jsonl", text_column="body", train_dataset=str(tmp_path / "t.txt")).text_column == "body"


def test_contexts_are_those_of_sae_lens(target):
    from sae_lens.training.activations_store import ActivationsStore

    model = load_model(target.model_name, "cpu", "float32")
    with pytest.warns(UserWarning, match="not tokenized"):
        store = ActivationsStore(
            model, text_dataset(target, "train"), True, target.hook_name, None, 33, 32, 2, 1000, 4, 64, True,
            "none", torch.device("cpu"), "float32",
        )  # fmt: skip
    ours = read_contexts(target, model, 33)
    theirs = store.get_batch_tokens(20)
    assert torch.equal(torch.stack([next(ours) for _ in range(20)]), theirs)
