"""Tiny language models and texts that the tests make themselves; nothing is fetched from anywhere."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import pytest

WORDS = "the cat sat on a mat while seven red birds sang of rain and the river ran past old stone walls".split()


def make_text(documents: int = 400) -> list[str]:
    import random

    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(documents)]


def make_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(make_text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.save_pretrained(folder)
    return len(fast)


def make_model(folder: Path, kind: str = "neox") -> Path:
    """A random causal LM of two layers and width 32, saved as a Hugging Face folder."""
    import torch
    import transformers as t

    folder.mkdir(parents=True)
    vocab = make_tokenizer(folder)
    torch.manual_seed(0)
    same = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    gated = {
        **same, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 128,
    }  # fmt: skip
    model = {
        "neox": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(
                **same, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                max_position_embeddings=128, initializer_range=0.2,
            )
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**same, n_embd=32, n_layer=2, n_head=2, n_positions=128)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**gated)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**gated, query_pre_attn_scalar=16)),
    }[kind]()  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(make_text()))
    return path


TINY = {
    "d_sae": 64, "k": 4, "training_tokens": 8192, "batch_tokens": 256, "context_size": 33, "stream_window": 4,
    "window": 4, "buffer_contexts": 32, "learning_rate": 1e-2, "dead_after_tokens": 1024,
}  # fmt: skip


def tiny(name: str) -> dict:
    """The settings of a very short training, those that the SAE of that name has."""
    from sae_variants import _plan, _register

    own = _register.resolve(name).field_names | _plan.SETTING_NAMES
    return {field: value for field, value in TINY.items() if field in own}


@pytest.fixture(scope="session")
def target(model_folder: Path, text_file: Path):
    import sae_lens  # noqa: F401

    from sae_variants import _targets

    return _targets.choose("sandbox", str(model_folder), "blocks.1.hook_resid_post", str(text_file))


@pytest.fixture(scope="session")
def trained(target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of trained SAEs that holds a tiny `temporal` and a tiny `stock:batchtopk`."""
    from sae_variants import _plan, _train

    root = tmp_path_factory.mktemp("trained")
    _train.train([_plan.plan(name, target, tiny(name), root) for name in ("temporal", "stock:batchtopk")])
    return root
