"""Factors without a field at rows without counts: from the rows beside them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpnsf.core.fields.base import Located
from gpnsf.core.inference.unseen import beside


def _blocks(coords, library):
    located = Located(torch.tensor(coords, dtype=torch.float32), torch.tensor(library))
    return [SimpleNamespace(located=located)]


@pytest.fixture
def places():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (1_000, 2)), rng.random(1_000) < 0.2, rng


def test_order_is_carried_to_unseen_rows_and_noise_is_not(places):
    coords, wanted, rng = places
    smooth = np.sin(4 * coords[:, 0])
    log_factors = np.stack([smooth + 0.5 * rng.normal(size=1_000), rng.normal(size=1_000)], 1)
    hidden = torch.tensor(np.where(wanted[:, None], 0.0, log_factors))
    found = beside(hidden, torch.tensor(wanted), _blocks(coords, np.zeros(1_000))).log().numpy()
    assert np.corrcoef(found[:, 0], smooth[wanted])[0, 1] > 0.9
    assert found[:, 1].std() < 0.1


def test_rows_of_another_slice_are_not_beside(places):
    coords, _, _ = places
    library = np.repeat([0, 1], 500)
    m = torch.tensor(np.where(library == 1, 0.0, np.sin(4 * coords[:, 0])))[:, None]
    found = beside(m, torch.tensor(library == 1), _blocks(coords, library))
    assert float(found.std()) < 1e-6  # all of the other slice unseen: the mean
