"""Train the sandbox language model: `python -m sae_variants.sandbox.build`.

The model is a GPT-NeoX, the architecture of Pythia, trained from random weights on the train split of the corpus. A
byte-level BPE tokenizer is trained first. One pass over the documents follows, in contexts of 256 tokens that begin
with `<|endoftext|>` and separate documents by it, as SAELens cuts text. Muon trains the matrices inside the blocks,
AdamW everything else; products are in bf16, and the learning rate decays to zero. Weights are stored in fp16.

Training resumes from a checkpoint in `--work`, written every `CHECKPOINT_STEPS` steps. The order of contexts follows
from the seed. The command writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` and
`build.json`, which holds the measurements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from sae_variants.cli.options import Parser
from sae_variants.common.console import run_command
from sae_variants.common.files import new_file
from sae_variants.language_model.load import reuse_freed_memory
from sae_variants.sandbox import corpus
from sae_variants.sandbox.corpus import SPLITS, documents

EOT = "<|endoftext|>"
VOCAB = 4096
CONTEXT = 256
BATCH = 16
SHAPE: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 768}
MATRIX_LR, OTHER_LR, WEIGHT_DECAY, WARMUP_STEPS = 8e-3, 4e-3, 0.05, 100
CHECKPOINT_STEPS = 250
HELDOUT_CONTEXTS = 512


def train_tokenizer(folder: Path) -> None:
    """Train the byte-level BPE tokenizer on the train split and write it to a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [document.text for document in documents("train")]
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=EOT, eos_token=EOT, pad_token=EOT, unk_token=EOT, model_max_length=CONTEXT
    )
    fast.save_pretrained(folder)
    # transformers 5 writes a class name that older releases do not know.
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def token_stream(folder: Path, split: str, work: Path) -> np.ndarray:
    """Return the token ids [n] of all documents of a split, each preceded by `<|endoftext|>`.

    Args:
        folder: Folder of the tokenizer.
        split: `train` or `heldout`.
        work: Folder that caches the ids.
    """
    path = work / f"{split}.npy"
    if not path.exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        eot = tokenizer.token_to_id(EOT)
        texts = [document.text for document in documents(split)]
        ids: list[np.ndarray] = []
        for start in tqdm(range(0, len(texts), 2000), desc=f"tokenising {split}"):
            for encoding in tokenizer.encode_batch_fast(texts[start : start + 2000], add_special_tokens=False):
                ids.append(np.array([eot, *encoding.ids], dtype=np.uint16))
        with new_file(path) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(ids))
    return np.load(path)


def contexts(stream: np.ndarray, eot: int = 0) -> torch.Tensor:
    """Return contexts [n, CONTEXT] of token ids: EOT, then CONTEXT - 1 tokens of the stream."""
    n = len(stream) // (CONTEXT - 1)
    body = stream[: n * (CONTEXT - 1)].reshape(n, CONTEXT - 1).astype(np.int64)
    return torch.from_numpy(np.concatenate([np.full((n, 1), eot), body], axis=1))


@torch.no_grad()
def cross_entropy(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Return the mean cross-entropy in nats per predicted token; end-of-text tokens count as targets."""
    total, count = 0.0, 0
    for batch in tokens.split(BATCH):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum")
        total, count = total + loss.item(), count + batch[:, 1:].numel()
    return total / count


def ngram_cross_entropy(train: np.ndarray, heldout: np.ndarray) -> dict[str, float]:
    """Return the cross-entropy of n-gram models on the held-out stream, in nats per token.

    The unigram model is smoothed by adding one, the bigram model by interpolated Kneser-Ney with discount 0.75.
    """
    counts = np.bincount(train, minlength=VOCAB).astype(float)
    unigram = (counts + 1) / (counts.sum() + VOCAB)
    pairs = np.zeros(VOCAB * VOCAB)
    np.add.at(pairs, train[:-1].astype(np.int64) * VOCAB + train[1:], 1)
    pairs = pairs.reshape(VOCAB, VOCAB)
    discount = 0.75
    continuation = (pairs > 0).sum(0) + 1.0
    continuation /= continuation.sum()
    totals = np.maximum(pairs.sum(1, keepdims=True), 1)
    backoff = discount * (pairs > 0).sum(1, keepdims=True) / totals
    backoff[pairs.sum(1) == 0] = 1.0
    bigram = np.maximum(pairs - discount, 0) / totals + backoff * continuation
    before, after = heldout[:-1].astype(np.int64), heldout[1:].astype(np.int64)
    return {
        "unigram": float(-np.log(unigram[after]).mean()),
        "bigram": float(-np.log(bigram[before, after]).mean()),
    }


def learning_rate_share(step: int, steps: int) -> float:
    """Return the factor of the learning rate: it rises over the first steps and decays to zero over the last 70 %."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * max(0.0, 1 - max(0, step - 0.3 * steps) / (0.7 * steps))


def train(folder: Path, work: Path, tokens: int, seed: int) -> dict[str, object]:
    """Train the language model and write it to a folder.

    Args:
        folder: Folder of the tokenizer, and of the trained model.
        work: Folder of the checkpoint, the log and the token ids.
        tokens: Training tokens; 0 is one pass over the train split.
        seed: Seed of the weights and of the order of contexts.

    Returns:
        Sizes and held-out cross-entropies.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SHAPE
    )
    model = GPTNeoXForCausalLM(config)
    inner = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n}
    other = [p for n, p in model.named_parameters() if n not in inner]
    optimizers = [
        torch.optim.Muon(list(inner.values()), lr=MATRIX_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other, lr=OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    base_rates = [MATRIX_LR, OTHER_LR]

    train_stream, heldout_stream = (token_stream(folder, split, work) for split in SPLITS)
    data, heldout = contexts(train_stream), contexts(heldout_stream)
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))]
    steps = min(tokens // (BATCH * CONTEXT), len(data) // BATCH) if tokens else len(data) // BATCH
    checkpoint, log = work / "checkpoint.pt", work / "log.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    bar = tqdm(range(start, steps), initial=start, total=steps, desc="language model")
    for step in bar:
        for optimizer, base in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * learning_rate_share(step, steps)
        batch = data[step * BATCH : (step + 1) * BATCH]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
            }
            with new_file(checkpoint) as partial:
                torch.save(state, partial)
            entry = {"step": step + 1, "loss": loss.item(), "heldout": cross_entropy(model, heldout[:64])}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    model.half().save_pretrained(folder)
    stored = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    measured = heldout[torch.randperm(len(heldout), generator=torch.Generator().manual_seed(seed))[:HELDOUT_CONTEXTS]]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": steps * BATCH * CONTEXT,
        "train_documents": len(documents("train")),
        "heldout_documents": len(documents("heldout")),
        "heldout_tokens": len(heldout_stream),
        "cross_entropy": cross_entropy(stored, measured),
        **ngram_cross_entropy(train_stream, heldout_stream),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options, train the tokenizer and the model, and write the measurements."""
    parser = Parser(prog="python -m sae_variants.sandbox.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(corpus.__file__).parent, help="Folder of the model.")
    parser.add_argument(
        "--work", type=Path, default=Path("sandbox-build"), help="Folder of checkpoints and token files."
    )
    parser.add_argument("--tokens", type=int, default=0, help="Training tokens; 0 is one pass over the train split.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights and of the order of contexts.")
    args = parser.parse_args(argv)
    reuse_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.json").exists():
        train_tokenizer(args.work)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (args.out / name).write_bytes((args.work / name).read_bytes())
    measured = train(args.out, args.work, args.tokens, args.seed)
    measured["seed"] = args.seed
    (args.out / "build.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))
    return 0


if __name__ == "__main__":
    run_command(main)
