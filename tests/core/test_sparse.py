"""Sparse terms: value and gradients are those of the dense sums, whatever the pattern."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gpnsf.core.counts import sparse
from gpnsf.core.counts.backends import LINKS, csr_tensor
from gpnsf.core.counts.sparse import SparseCounts, SparseTerm, TransposedProduct
from gpnsf.core.types import TINY

K = 3
DENSE = {
    "log": lambda y, rate: y * torch.log(rate),
    "cloglog": lambda y, rate: torch.log(torch.expm1(rate)),
}


@pytest.fixture(autouse=True, params=["numba", "torch"])
def _each_backend(request, monkeypatch):
    """Everything here holds for both."""
    monkeypatch.setattr(sparse, "backend", lambda device: request.param)


def _with_gaps() -> np.ndarray:
    """Counts with empty rows and columns, at the ends and inside."""
    counts = np.random.default_rng(0).poisson(0.7, (12, 9)).astype(np.float32)
    counts[[0, 5, 11]] = 0
    counts[:, [0, 4, 8]] = 0
    return counts


MATRICES = {
    "some": np.random.default_rng(1).poisson(0.5, (14, 6)).astype(np.float32),
    "gaps": _with_gaps(),
    "none": np.zeros((5, 4), np.float32),
    "one": np.eye(7, 8, k=3, dtype=np.float32) * (np.arange(7) == 2)[:, None] * 300,
    "full": np.random.default_rng(2).integers(1, 9, (6, 5)).astype(np.float32),
    "row": np.array([[0, 2, 0, 1]], np.float32),
    "column": np.array([[0], [2], [5]], np.float32),
}


def draw(name: str) -> tuple[np.ndarray, SparseCounts, torch.Tensor, torch.Tensor]:
    """Dense and sparse counts with positive factors and loadings."""
    dense = MATRICES[name]
    generator = torch.Generator().manual_seed(0)
    G, W = (0.1 + torch.rand(n, K, generator=generator) for n in dense.shape)
    return dense, SparseCounts(sp.csr_matrix(dense)), G, W


def reference(
    dense: np.ndarray, G: torch.Tensor, W: torch.Tensor, link: str
) -> tuple[torch.Tensor, ...]:
    """Value and gradients in double precision by autograd over the dense rates."""
    A = G.double().requires_grad_()
    B = W.double().requires_grad_()
    y = torch.as_tensor(dense).double()
    value = DENSE[link](y, A @ B.T)[y > 0].sum()
    value.backward()
    return value.detach(), A.grad, B.grad


def close(found: torch.Tensor, expected: torch.Tensor, rtol: float = 2e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=1e-5)


def test_no_missing_link():
    assert LINKS.keys() == DENSE.keys()


def test_terms_are_those_of_dense_autograd(subtests):
    for name, link in product(MATRICES, LINKS):
        with subtests.test(name=name, link=link):
            dense, counts, G, W = draw(name)
            for found, expected in zip(
                counts.terms(G, W, link), reference(dense, G, W, link), strict=True
            ):
                close(found, expected)


def test_halves_are_parts_of_the_terms(subtests):
    for name, link in product(MATRICES, LINKS):
        with subtests.test(name=name, link=link):
            _, counts, G, W = draw(name)
            _, dG, dW = counts.terms(G, W, link)
            torch.testing.assert_close(counts.half(G, W, link), dG, rtol=0, atol=0)
            torch.testing.assert_close(counts.half_loadings(G, W, link), dW, rtol=0, atol=0)


def test_the_value_alone_is_that_of_the_terms(subtests):
    for name, link in product(MATRICES, LINKS):
        with subtests.test(name=name, link=link):
            _, counts, G, W = draw(name)
            torch.testing.assert_close(counts.value(G, W, link), counts.terms(G, W, link)[0])


def test_autograd_scales_the_gradients_with_what_comes_from_above(subtests):
    for name, link in product(MATRICES, LINKS):
        with subtests.test(name=name, link=link):
            dense, counts, G, W = draw(name)
            A, B = G.clone().requires_grad_(), W.clone().requires_grad_()
            (-2.5 * SparseTerm.apply(A, B, counts, link)).backward()
            _, dG, dW = reference(dense, G, W, link)
            close(A.grad, -2.5 * dG)
            close(B.grad, -2.5 * dW)


def test_gradient_is_the_slope_of_the_value(subtests):
    """Central differences in double precision against the hand-written gradient."""
    for link in LINKS:
        with subtests.test(link=link):
            dense, counts, G, W = draw("gaps")
            _, dG, dW = counts.terms(G, W, link)
            step, towards_G, towards_W = (
                1e-5,
                torch.randn(G.shape).double(),
                torch.randn(W.shape).double(),
            )
            up, down = (
                reference(dense, G.double() + s * towards_G, W.double() + s * towards_W, link)[0]
                for s in (step, -step)
            )
            expected = (dG.double() * towards_G).sum() + (dW.double() * towards_W).sum()
            close((up - down) / (2 * step), expected, rtol=1e-4)


def test_transposed_memory_order_does_not_matter(subtests):
    for link in LINKS:
        with subtests.test(link=link):
            dense, counts, G, W = draw("some")
            scattered = G.T.contiguous().T.requires_grad_(), W.T.contiguous().T.requires_grad_()
            value = SparseTerm.apply(*scattered, counts, link)
            value.backward()
            expected = reference(dense, G, W, link)
            close(value.detach(), expected[0])
            close(scattered[0].grad, expected[1])


def test_value_is_the_same_without_gradients(subtests):
    for link in LINKS:
        with subtests.test(link=link):
            _, counts, G, W = draw("some")
            torch.testing.assert_close(
                SparseTerm.apply(G, W, counts, link), counts.terms(G, W, link)[0]
            )


def test_links_are_accurate_over_many_decades(subtests):
    for link, rate in product(LINKS, (1e-15, 1e-9, 1e-4, 0.1, 3.0, 30.0, 200.0)):
        with subtests.test(link=link, rate=rate):
            y, r = torch.ones(1), torch.full((1,), rate)
            exact = r.double().requires_grad_()
            expected = (
                y * torch.log(exact) if link == "log" else exact + torch.log(-torch.expm1(-exact))
            )
            expected.backward()
            value, slope = LINKS[link](y, r)
            close(value, expected.detach(), rtol=1e-6)
            torch.testing.assert_close(slope.double(), exact.grad, rtol=1e-6, atol=0)


def test_vanishing_rates_stay_finite(subtests):
    for link in LINKS:
        with subtests.test(link=link):
            _, counts, G, W = draw("some")
            value, dG, dW = counts.terms(torch.zeros_like(G), W, link)
            logs = float(counts.values.sum()) if link == "log" else counts.nnz
            assert value.item() == pytest.approx(np.log(TINY) * logs, rel=1e-5)
            assert torch.isfinite(dG).all()
            assert torch.isfinite(dW).all()


def test_linear_algebra_on_the_pattern(subtests):
    for name in MATRICES:
        with subtests.test(name=name):
            dense, counts, G, W = draw(name)
            close(counts.product(W), torch.as_tensor(dense) @ W)
            rates = (G.double() @ W.double().T)[torch.as_tensor(dense) > 0]
            close(counts.rates(G, W), rates)


def weight(values: torch.Tensor, rate: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
    """Weights of entries that grow with the number of the feature."""
    return (1 + feature) * values / rate


def test_information_is_a_weighted_sum_of_outer_products(subtests, monkeypatch):
    for name, chunk in product(MATRICES, (4_000_000, 5)):
        with subtests.test(name=name, chunk=chunk):
            monkeypatch.setattr(sparse, "CHUNK", chunk)
            dense, counts, G, W = draw(name)
            y, A, B = torch.as_tensor(dense).double(), G.double(), W.double()
            C = (1 + torch.arange(dense.shape[1])) * y / (A @ B.T)
            A, B = A[:, :-1], B[:, :-1]
            close(counts.information(G, W, weight), torch.einsum("ij,jk,jl->ikl", C, B, B))
            close(counts.loading_information(G, W, weight), torch.einsum("ij,ik,il->jkl", C, A, A))


def test_product_has_the_gradient_of_the_transpose():
    dense, counts, G, W = draw("gaps")
    B = W.clone().requires_grad_()
    (counts.product(B) * G).sum().backward()
    close(B.grad, torch.as_tensor(dense).T @ G)


def test_transposed_product_takes_any_pair_of_matrices():
    matrix = sp.random(6, 4, 0.5, format="csr", dtype=np.float32, random_state=0)
    pair = [
        csr_tensor(*(torch.as_tensor(part) for part in (m.indptr, m.indices, m.data)), m.shape)
        for m in (matrix, matrix.T.tocsr())
    ]
    B, above = torch.randn(4, 2).requires_grad_(), torch.randn(6, 2)
    found = TransposedProduct.apply(*pair, B)
    found.backward(above)
    close(found.detach(), torch.as_tensor(matrix.toarray()) @ B.detach())
    close(B.grad, torch.as_tensor(matrix.toarray()).T @ above)


def test_summaries_of_the_counts(subtests):
    for name in MATRICES:
        with subtests.test(name=name):
            dense, counts, _, _ = draw(name)
            y = torch.as_tensor(dense)
            assert counts.shape == dense.shape
            assert counts.nnz == np.count_nonzero(dense)
            close(counts.log_factorials, torch.lgamma(y.double() + 1).sum())
            close(counts.column_squares, (y**2).sum(0))
            torch.testing.assert_close(counts.values, y[y > 0])
            torch.testing.assert_close(counts.columns.long(), torch.nonzero(y)[:, 1])


def test_histogram_counts_every_pair_of_feature_and_count_once(subtests):
    for name in MATRICES:
        with subtests.test(name=name):
            dense, counts, _, _ = draw(name)
            rebuilt = {
                (int(j), float(y)): int(n) for j, y, n in zip(*counts.histogram, strict=True)
            }
            expected: dict[tuple[int, float], int] = {}
            for i, j in zip(*np.nonzero(dense), strict=True):
                pair = int(j), float(dense[i, j])
                expected[pair] = expected.get(pair, 0) + 1
            assert rebuilt == expected


def test_dense_rows_cut_out_a_block(subtests):
    for name in MATRICES:
        with subtests.test(name=name):
            dense, counts, _, _ = draw(name)
            n = len(dense)
            for rows in {(0, n), (0, 1), (n - 1, n), (n // 3, n - n // 3)}:
                np.testing.assert_array_equal(
                    counts.dense_rows(slice(*rows)).numpy(), dense[slice(*rows)]
                )


def test_no_dense_array_is_made(subtests):
    """A matrix of 200,000 x 50,000 entries would take 40 GB."""
    for link in LINKS:
        with subtests.test(link=link):
            n_obs, n_features, nnz = 200_000, 50_000, 1_000
            rng = np.random.default_rng(0)
            entries = (
                rng.integers(1, 5, nnz).astype(np.float32),
                (rng.integers(0, n_obs, nnz), rng.integers(0, n_features, nnz)),
            )
            matrix = sp.csr_matrix(entries, shape=(n_obs, n_features))
            counts = SparseCounts(matrix)
            G, W = (
                torch.rand(n, 2, generator=torch.Generator().manual_seed(n)) + 0.1
                for n in matrix.shape
            )
            value, dG, dW = counts.terms(G, W, link)
            coo = matrix.tocoo()
            rate = (G[coo.row].double() * W[coo.col].double()).sum(1)
            close(value, DENSE[link](torch.as_tensor(coo.data).double(), rate).sum())
            assert dG.shape == (n_obs, 2)
            assert dW.shape == (n_features, 2)
            assert torch.count_nonzero(dG[:, 0]) == len(np.unique(coo.row))


def test_rows_can_be_taken_from_a_larger_matrix():
    matrix = sp.csr_matrix(MATRICES["gaps"])
    counts = SparseCounts(matrix, rows=slice(3, 9))
    np.testing.assert_array_equal(counts.dense_rows(slice(0, 6)), MATRICES["gaps"][3:9])
    G, W = torch.rand(6, K) + 0.1, torch.rand(9, K) + 0.1
    for found, expected in zip(
        counts.terms(G, W, "log"), reference(MATRICES["gaps"][3:9], G, W, "log"), strict=True
    ):
        close(found, expected)


def test_the_matrix_put_in_is_shared_and_stays_as_it_is():
    matrix = sp.csr_matrix(MATRICES["some"])
    counts, before = SparseCounts(matrix), matrix.copy()
    assert np.shares_memory(counts.values.numpy(), matrix.data)
    counts.terms(torch.ones(14, K), torch.ones(6, K), "log")
    assert (matrix != before).nnz == 0
