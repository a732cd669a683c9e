"""Radix select of the n-th largest value, as processes do it together."""

from __future__ import annotations

import pytest
import torch

from sae_variants.ops.largest import keys_of, nth_largest_key, values_of

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_nth_largest_is_that_of_a_sort(dtype):
    special = torch.tensor([0.0, -0.0, INF, -INF, 1e-39, -1e-39, 2.0, 2.0, 2.0])
    values = torch.cat([torch.randn(300), special]).to(dtype)
    ordered = values.sort(descending=True).values
    keys = keys_of(values)
    found = [values_of(nth_largest_key(keys, n, lambda counts: counts), dtype) for n in range(1, len(values) + 1)]
    assert torch.equal(torch.stack(found), ordered)


def test_zeros_are_equal_and_nan_is_the_largest():
    assert keys_of(torch.tensor([0.0])) == keys_of(torch.tensor([-0.0]))
    keys = keys_of(torch.tensor([1.0, NAN, INF, -NAN, -INF]))
    assert keys.argsort(descending=True, stable=True).tolist() == [1, 3, 2, 0, 4]
    assert values_of(keys[1], torch.float32).isnan()
