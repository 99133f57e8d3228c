"""The compiled pass: equal to dense sums in double precision, whatever the width, the stripes and the threads."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gpnsf.core.counts import backends, simd
from gpnsf.core.counts.backends import LINKS, Pattern, Simd, Torch
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.types import TINY

WIDTHS = (1, 8, 11, 24, 33)  # one to five vectors of eight
each_link = pytest.mark.parametrize("link", LINKS)
each_width = pytest.mark.parametrize("K", WIDTHS)


def ladder(n: int = 40, n_columns: int = 70) -> sp.csr_matrix:
    """Counts with 0, 1, 2, ... in a row, so that rows end at every lane; some columns are empty."""
    rng = np.random.default_rng(0)
    counts = np.zeros((n, n_columns), np.float32)
    for i in range(n):
        counts[i, rng.choice(n_columns - 9, i, replace=False)] = rng.integers(1, 6, i)
    return sp.csr_matrix(counts)


def draw(matrix: sp.csr_matrix, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive factors and loadings over five decades."""
    generator = torch.Generator().manual_seed(K)
    G, W = (0.1 + torch.rand(n, K, generator=generator) for n in matrix.shape)
    return G, W * 10 ** (4 * torch.rand(len(W), 1, generator=generator) - 3)


def reference(
    matrix: sp.csr_matrix, G: torch.Tensor, W: torch.Tensor, link: str
) -> tuple[torch.Tensor, ...]:
    """Value and gradients by dense algebra in double precision."""
    y, A, B = torch.as_tensor(matrix.toarray()).double(), G.double(), W.double()
    rate = A @ B.T + TINY
    value = y * torch.log(rate) if link == "log" else torch.log(torch.expm1(rate))
    slope = (y / rate if link == "log" else -1 / torch.expm1(-rate)) * (y > 0)
    return value[y > 0].sum(), slope @ B, slope.T @ A


def close(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=0)


@pytest.mark.broad(2)
@each_width
def test_terms_are_those_of_dense_algebra(K, subtests):
    matrix = ladder()
    (G, W), rows = draw(matrix, K), Simd(Pattern.read(matrix, "cpu"))
    for link in LINKS:
        with subtests.test(link=link):
            value, dG, dW = reference(matrix, G, W, link)
            found = rows.terms(G, W, link, "GW")
            for part, expected in zip(found, (value, dG, dW), strict=True):
                close(part, expected)
            close(rows.terms(G, W, link, "G")[1], dG)
            close(rows.terms(G, W, link, "W")[2], dW)
            close(rows.terms(G, W, link, "")[0], value)


@each_width
def test_rates_and_information_are_those_of_dense_algebra(K):
    matrix = ladder()
    G, W = draw(matrix, K)
    y, A, B = torch.as_tensor(matrix.toarray()).double(), G.double(), W.double()
    close(Simd(Pattern.read(matrix, "cpu")).rates(G, W), (A @ B.T)[y > 0])
    weights = torch.rand(matrix.nnz, generator=torch.Generator().manual_seed(0))
    result = torch.ones(len(A), K, K)
    Simd(Pattern.read(matrix, "cpu")).information(weights, W, result)
    C = torch.zeros_like(y)
    C[y > 0] = weights.double()
    close(result, 1 + torch.einsum("ij,jk,jl->ikl", C, B, B))
    assert torch.equal(result, result.mT)


@pytest.mark.broad(2)
@each_width
def test_values_with_one_column_changed_are_those_of_each_change_alone(K, subtests, monkeypatch):
    monkeypatch.setattr(backends, "STRIPE_NONZEROS", 3)
    monkeypatch.setattr(backends, "THREAD_NONZEROS", 50)
    matrix = ladder()
    G, W = draw(matrix, K)
    # rates come down to almost nothing
    changes = torch.rand(G.shape, generator=torch.Generator().manual_seed(1)) - G
    for link, stripe in product(LINKS, (backends.STRIPE_BYTES, 1_000)):
        with subtests.test(link=link, stripe=stripe):
            monkeypatch.setattr(backends, "STRIPE_BYTES", stripe)
            pattern, expected = Pattern.read(matrix, "cpu"), []
            for k in range(K):
                changed = G.clone()
                changed[:, k] += changes[:, k]
                expected.append(reference(matrix, changed, W, link)[0])
            for rows in (Simd(pattern), Torch(pattern, pattern.transposed)):
                found = rows.without(G, changes, W, link)
                torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-3)


def test_links_are_accurate_over_many_decades(subtests):
    for link, rate in product(
        LINKS, (0.0, 1e-15, 1e-9, 1e-4, 0.1, 0.3, 1.0, 3.0, 9.9, 30.0, 200.0, 1e4)
    ):
        with subtests.test(link=link, rate=rate):
            y, r = torch.full((1,), 2.0), torch.full((1, 1), rate)
            expected = LINKS[link](y.double(), r.double()[0] + TINY)
            rows = Simd(Pattern.read(sp.csr_matrix(y.numpy()[None]), "cpu"))
            found = rows.terms(r, torch.ones(1, 1), link, "GW")
            close(found[0], expected[0][0], rtol=2e-7)
            close(found[1], expected[1][None], rtol=5e-7)


def test_what_is_not_finite_reaches_the_value(subtests):
    for link, bad, where in product(LINKS, (np.nan, np.inf), ("G", "W")):
        with subtests.test(link=link, bad=bad, where=where):
            matrix = ladder()
            G, W = draw(matrix, 11)
            # a row with a single count, or the feature of that count
            {"G": G[1], "W": W[matrix[1].indices[0]]}[where][7] = bad
            value, dG, dW = Simd(Pattern.read(matrix, "cpu")).terms(G, W, link, "GW")
            assert not value.isfinite()
            assert not (dG.isfinite().all() and dW.isfinite().all())


@each_link
def test_stripes_of_columns_add_up(link, monkeypatch):
    matrix = ladder()
    (G, W), whole = draw(matrix, 11), Simd(Pattern.read(matrix, "cpu"))
    terms = whole.terms(G, W, link, "GW")
    rates = whole.rates(G, W)
    results = torch.zeros(2, len(G), 11, 11)
    whole.information(torch.ones(matrix.nnz), W, results[0])
    cuts, cut = [], simd.cut
    monkeypatch.setattr(simd, "cut", lambda *arrays: cuts.append(len(arrays[2])) or cut(*arrays))
    monkeypatch.setattr(backends, "STRIPE_BYTES", 1_000)
    monkeypatch.setattr(backends, "STRIPE_NONZEROS", 3)
    striped = Simd(Pattern.read(matrix, "cpu"))
    for part, expected in zip(striped.terms(G, W, link, "GW"), terms, strict=True):
        close(part, expected.double())
    assert torch.equal(striped.rates(G, W), rates)
    striped.information(torch.ones(matrix.nnz), W, results[1])
    close(results[1], results[0].double())
    assert cuts == [
        5,
        3,
    ]  # six stripes where the gradient of W is gathered too, else four: each found once


@each_link
def test_two_threads_give_the_same_bits_each_time_and_the_numbers_of_one(link, monkeypatch):
    monkeypatch.setattr(backends, "THREAD_NONZEROS", 50)
    matrix = ladder()
    (G, W), rows = draw(matrix, 11), Simd(Pattern.read(matrix, "cpu"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = (rows.terms(G, W, link, "GW") for _ in range(2))
        rates = rows.rates(G, W)
        torch.set_num_threads(1)
        alone = rows.terms(G, W, link, "GW")
        assert torch.equal(rates, rows.rates(G, W))
    finally:
        torch.set_num_threads(before)
    with backends.pool_of(2):  # however many torch has
        assert torch.equal(rows.terms(G, W, link, "GW")[2], first[2])
    assert torch.equal(rows.terms(G, W, link, "GW")[2], alone[2])
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        close(a, c.double())
    assert not torch.equal(first[2], alone[2])  # two sums were added


def test_a_fit_on_the_cpu_never_makes_the_counts_by_columns(monkeypatch):
    matrix = ladder()
    counts, (G, W) = SparseCounts(matrix), draw(matrix, 3)
    assert backends.backend("cpu") == "numba"  # its trial compares with torch
    monkeypatch.setattr(Pattern, "transposed", lambda self: pytest.fail("transposed"))
    counts.terms(G, W, "log")
    counts.half(G, W, "log")
    counts.half_loadings(G, W, "log")
    counts.information(G, W, lambda values, rate, feature: values / rate)
    np.testing.assert_array_equal(counts.per_column, (matrix.toarray() > 0).sum(0))
