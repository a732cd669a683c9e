"""The stream, over a model whose activation is the stamp of its token: (context, position)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from sae_variants.common.errors import UsageError
from sae_variants.training.windows import WindowStream

T, W = 18, 4
SEPARATOR = 0


def stamped(contexts: int):
    """Token id = 1000 * context + position, with a separator at position 0 and one inside every third context."""
    for number in range(1, contexts + 1):
        tokens = 1000 * number + torch.arange(T)
        tokens[0] = SEPARATOR
        if number % 3 == 0:
            tokens[7] = SEPARATOR
        yield tokens


def stream(contexts: int = 24, window: int = W, batch_rows: int = 16, seed: int = 0) -> WindowStream:
    return WindowStream(
        contexts=lambda: stamped(contexts),
        activations=lambda tokens: torch.stack([tokens // 1000, tokens % 1000], -1).float(),
        special_ids=(SEPARATOR,),
        context_size=T,
        window=window,
        batch_rows=batch_rows,
        buffer_contexts=8,
        seed=seed,
    )


def take(made: WindowStream, n: int, start: int = 0):
    return list(itertools.islice(made.batches(start), n))


def test_rows_of_a_window_are_neighbours_of_one_context():
    clean = 0
    for acts, special, context in take(stream(), 12):
        parts = (values.unflatten(0, (-1, W)) for values in (acts, special, context))
        for window, marks, numbers in zip(*parts, strict=True):
            if marks.any():
                continue
            clean += 1
            assert (window[:, 0] == window[0, 0]).all(), "one context"
            assert (numbers == numbers[0]).all(), "one number"
            assert (window[1:, 1] - window[:-1, 1] == 1).all(), "t follows t-1"
    assert clean > 30


def test_no_clean_window_spans_a_separator():
    for acts, special, _ in take(stream(), 12):
        for window, marks in zip(acts.unflatten(0, (-1, W)), special.unflatten(0, (-1, W)), strict=True):
            if window[0, 0] % 3 == 0 and not marks.any():
                first, last = window[0, 1].item(), window[-1, 1].item()
                assert not first <= 7 <= last


def test_separators_train_nothing():
    for acts, _, _ in take(stream(), 24):
        assert (acts[:, 0] > 0).all(), "no row is the activation of a separator"


def test_windows_are_shuffled_and_all_served():
    batches = take(stream(), stream().batches_per_buffer)
    rows = torch.cat([acts for acts, _, _ in batches])
    assert len(set(rows[:, 0].tolist())) == 8
    contexts = rows.unflatten(0, (-1, W))[:, 0, 0].tolist()
    assert contexts != sorted(contexts)


def test_a_batch_depends_on_its_number_alone():
    whole = take(stream(), 40)
    for start in (1, 7, 8, 23, 39):
        acts, special, _ = take(stream(), 1, start)[0]
        assert torch.equal(acts, whole[start].acts_ND)
        assert torch.equal(special, whole[start].special_N)


def test_the_seed_decides_the_order():
    assert torch.equal(take(stream(), 1)[0].acts_ND, take(stream(), 1)[0].acts_ND)
    assert not torch.equal(take(stream(), 1)[0].acts_ND, take(stream(seed=1), 1)[0].acts_ND)


def test_a_short_text_begins_again_in_another_order():
    batches = take(stream(contexts=8), 2 * stream().batches_per_buffer)
    half = len(batches) // 2
    first, second = (torch.cat([b.acts_ND for b in part]) for part in (batches[:half], batches[half:]))
    assert set(map(tuple, first.tolist())) & set(map(tuple, second.tolist()))
    assert not torch.equal(first, second)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match="shorter than one context"):
        take(stream(contexts=0), 1)
    with pytest.raises(UsageError, match="multiple"):
        stream(batch_rows=18)
    with pytest.raises(UsageError, match="does not fit"):
        stream(window=32, batch_rows=32)
    with pytest.raises(UsageError, match="fewer than one batch"):
        stream(batch_rows=1024)


@pytest.mark.parametrize(("start", "last", "made"), [(0, 5, 1), (0, 8, 1), (0, 9, 2), (7, 9, 2), (8, 9, 1)])
def test_no_buffer_behind_the_last_batch_is_made_ahead(start, last, made):
    """Eight contexts of four windows of four tokens are eight batches of sixteen rows."""
    plain, calls = stream(), []

    def counting(tokens):
        calls.append(len(tokens))
        return plain.activations(tokens)

    ahead = replace(plain, activations=counting, ahead_on="cpu")
    batches, expected = ahead.batches(start, last), take(plain, 20, start)
    found = list(itertools.islice(batches, last - start))
    assert len(calls) == made
    found += itertools.islice(batches, 20 - len(found))  # the stream has no end
    assert all(torch.equal(a.acts_ND, b.acts_ND) for a, b in zip(found, expected, strict=True))
