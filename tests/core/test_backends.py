"""The choice of a backend, and what backends share."""

from __future__ import annotations

import logging
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from gpnsf.core.counts import backends
from gpnsf.core.counts.backends import Pattern, backend, saturation
from gpnsf.core.counts.sparse import SparseCounts

ORDINARY = backends.Simd  # before a test puts something broken in its place


@pytest.fixture(autouse=True)
def _chosen_anew(monkeypatch):
    """Each test makes the choice, and leaves none behind."""
    monkeypatch.delenv("GPNSF_KERNEL", raising=False)
    backend.cache_clear()
    yield
    backend.cache_clear()


class Uncompiled(ORDINARY):
    """What a machine may do that numba does not know."""

    def terms(self, *arguments):
        raise NotImplementedError("no vectors here")


class Wrong(ORDINARY):
    """Compiled, but not right."""

    def terms(self, *arguments):
        value, dG, dW = super().terms(*arguments)
        return value, dG, 1.01 * dW


@pytest.mark.broad(1)
def test_numba_is_the_first_choice_on_the_cpu_and_torch_elsewhere():
    assert backend("cpu") == "numba"
    assert backend("cuda") == "torch"


@pytest.mark.parametrize(
    ("broken", "error"), [(Uncompiled, "NotImplementedError"), (Wrong, "ArithmeticError")]
)
def test_torch_takes_over_from_what_does_not_work_and_the_log_says_so_once(
    broken, error, monkeypatch, caplog
):
    monkeypatch.setattr(backends, "Simd", broken)
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        assert [backend("cpu"), backend("cpu")] == [f"torch ({error})"] * 2
    assert len(caplog.records) == 1
    counts = SparseCounts(sp.eye(3, format="csr", dtype=np.float32))
    value, dG, dW = counts.terms(torch.full((3, 1), 2.0), torch.ones(3, 1), "log")
    assert value.item() == pytest.approx(3 * np.log(2))
    np.testing.assert_allclose(dG, 0.5)
    np.testing.assert_allclose(dW, 1.0)


def test_the_environment_asks_for_torch(monkeypatch, caplog):
    monkeypatch.setenv("GPNSF_KERNEL", "torch")
    assert backend("cpu") == "torch (GPNSF_KERNEL)"
    assert not caplog.records


def test_the_environment_cannot_ask_for_what_there_is_not(monkeypatch):
    monkeypatch.setenv("GPNSF_KERNEL", "avx")
    with pytest.raises(ValueError, match="'numba' or 'torch'; got 'avx'"):
        backend("cpu")


def test_a_pattern_shares_the_arrays_of_a_matrix_and_of_its_rows():
    matrix = sp.random(20, 9, 0.4, format="csr", dtype=np.float32, random_state=0)
    pattern = Pattern.read(matrix, "cpu")
    part = pattern.rows(slice(5, 12))
    for found in (pattern, part):
        assert np.shares_memory(found.values.numpy(), matrix.data)
        assert np.shares_memory(found.indices.numpy(), matrix.indices)
    expected = matrix[5:12]
    np.testing.assert_array_equal(part.pointers, expected.indptr)
    np.testing.assert_array_equal(part.values, expected.data)
    assert part.shape == expected.shape


def test_a_pattern_takes_what_is_not_in_order_or_of_another_type():
    indices = np.array([2, 0, 1], np.int64)
    matrix = sp.csr_matrix((np.array([3, 1, 2]), indices, np.array([0, 3])), shape=(1, 4))
    matrix.data.flags.writeable = False
    pattern = Pattern.read(matrix, "cpu")
    assert pattern.indices.tolist() == [0, 1, 2]
    assert pattern.values.tolist() == [1.0, 2.0, 3.0]
    assert matrix.indices.tolist() == [2, 0, 1]


def test_saturation_is_what_it_says(subtests, monkeypatch):
    for kernel, scale in product(("numba", "torch"), (1e-6, 1.0, 1e6)):
        with subtests.test(kernel=kernel, scale=scale):
            monkeypatch.setattr(backends, "backend", lambda device, kernel=kernel: kernel)
            ratio = scale * torch.rand(300, 17, generator=torch.Generator().manual_seed(0))
            exact = ratio.double()
            logs, shares = saturation(ratio)
            torch.testing.assert_close(ratio.double(), 1 / (1 + exact), rtol=1e-6, atol=0)
            torch.testing.assert_close(
                shares.double(), (exact / (1 + exact)).sum(0), rtol=1e-5, atol=0
            )
            torch.testing.assert_close(
                logs.double(), torch.log1p(exact).sum(0), rtol=1e-5, atol=1e-4
            )


def test_saturation_hides_nothing_that_is_not_finite(subtests, monkeypatch):
    for kernel, bad in product(("numba", "torch"), (np.nan, np.inf)):
        with subtests.test(kernel=kernel, bad=bad):
            monkeypatch.setattr(backends, "backend", lambda device, kernel=kernel: kernel)
            ratio = torch.ones(5, 3)
            ratio[2, 1] = bad
            logs, _ = saturation(ratio)
            assert logs.isfinite().tolist() == [True, False, True]
