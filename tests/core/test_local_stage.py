"""The local stage: the exact posterior where there is one, a stationary point elsewhere, and honest intervals."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pyro.poutine as poutine
import pytest
import scipy.sparse as sp
import torch
from drawn import without_counts
from reference import toy_dataset

from gpnsf.core.inference import local_stage
from gpnsf.core.inference.local_stage import LogFactors, local, mean_field
from gpnsf.core.model.build import FIELDS, build
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.scores.metrics import coverage
from gpnsf.core.types import Dataset, View

TWO = {"rna": "poisson", "atac": "bernoulli"}
SPATIAL = {"fa": 0, "rsf": 2, "pnmf": 0, "nsf": 2, "nsfh": 1, "gpnsf": 1}


def problem(
    preset: str, likelihoods: dict[str, str] | None = None, *, field: str = "hilbert", **data
):
    """A dataset of 60 spots and a model of two factors away from its start."""
    dataset = toy_dataset(
        likelihoods or ({"rna": "gaussian"} if preset in ("fa", "rsf") else TWO), **data
    )
    options = {
        "field": field,
        "n_inducing": 30,
        "loadings": "point",
    }  # the stage knows the means of loadings alone
    model = build(preset, dataset, n_factors=2, n_spatial=SPATIAL[preset], **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return dataset, model


def score(model: Factorization, dataset: Dataset, h: torch.Tensor) -> torch.Tensor:
    """Gradient [N, K] of the dense log-likelihood of the observed entries in h."""
    (block,) = model.blocks(dataset)
    h = h.clone().requires_grad_()
    total = 0.0
    for name, view in model.items():
        size, seen = block.size[name], block.size[name][:, 0] > 0
        factors = h.exp() if model.nonnegative else h
        rate = torch.cat([size * factors, size], 1) @ view.loadings.mean.detach().T
        dense = block.counts[name].dense_rows(slice(0, len(h)))
        total = total + view.likelihood.distribution(rate[seen]).log_prob(dense[seen]).sum()
    return torch.autograd.grad(total, h)[0]


@pytest.fixture
def patient(monkeypatch):
    """Enough rounds for the spread of the deviations to settle."""
    monkeypatch.setattr(local_stage, "NEWTON_STEPS", (3,) * 60)


@pytest.mark.usefixtures("patient")
def test_gaussian_deviations_are_exact(subtests):
    """``C = (W^T W / sd^2 + 1 / gamma)^-1`` and ``e = C W^T (y - r) / sd^2`` at the field."""
    for preset in ("fa", "rsf"):
        with subtests.test(preset=preset):
            dataset, model = problem(preset)
            (block,) = model.blocks(dataset)
            result, view = local(model, [block]), dict(model.items())["rna"]
            W = view.loadings.mean.detach()[:, :2]
            precision = torch.exp(-2 * view.likelihood.log_sd.detach())
            base = result.field_m if preset == "rsf" else torch.zeros(60, 2)
            C = torch.linalg.inv((W.T * precision) @ W + torch.diag(1 / result.gamma))
            residual = (
                torch.as_tensor(dataset.views[0].counts.toarray())
                - base @ W.T
                - view.loadings.mean.detach()[:, 2]
            )
            e = residual * precision @ W @ C
            torch.testing.assert_close(result.m, base + e, rtol=0.02, atol=0.02)
            own = C.diagonal().expand(60, -1)
            if preset == "rsf":
                own = own + (own / result.gamma) ** 2 * result.field_v
            torch.testing.assert_close(result.v, own, rtol=0.03, atol=1e-4)


@pytest.mark.usefixtures("patient")
def test_deviations_are_where_the_posterior_is_flat(subtests):
    for preset, likelihoods in product(
        ("pnmf", "nsf", "nsfh", "gpnsf"), (TWO, {"rna": "nb"}, {"rna": "bernoulli"})
    ):
        with subtests.test(preset=preset, likelihoods=likelihoods):
            dataset, model = problem(preset, likelihoods)
            result = local(model, model.blocks(dataset))
            base = torch.cat([result.field_m, torch.zeros(60, 2 - model.n_spatial)], 1)
            slope = score(model, dataset, result.m) - (result.m - base) / result.gamma
            missed = (slope.abs() * torch.minimum(result.v, result.gamma).sqrt()).amax(
                1
            )  # step left, in standard deviations
            assert missed.max() < 0.1  # what the last update of gamma leaves


def test_spots_that_the_model_describes_all_arrive(subtests):
    for depth in (0.5, 2.0):
        with subtests.test(depth=depth):
            dataset, model, _ = drawn("pnmf", depth=depth)
            result = local(model, model.blocks(dataset))
            slope = score(model, dataset, result.m) - result.m / result.gamma
            assert (slope.abs() * result.v.sqrt()).max() < 0.06


def test_the_usual_rounds_are_enough(monkeypatch):
    dataset, model, _ = drawn("pnmf", depth=1.0)
    few = local(model, model.blocks(dataset))
    monkeypatch.setattr(local_stage, "NEWTON_STEPS", (3,) * 60)
    many = local(model, model.blocks(dataset))
    assert ((few.m - many.m).abs() / many.v.sqrt()).mean() < 0.1
    torch.testing.assert_close(few.v.sqrt().mean(0), many.v.sqrt().mean(0), rtol=0.05, atol=0)


@pytest.mark.usefixtures("patient")
def test_rows_without_data_keep_the_field_and_the_prior(subtests):
    for preset, field in product(("pnmf", "nsf", "gpnsf", "rsf"), FIELDS):
        with subtests.test(preset=preset, field=field):
            likelihoods = {"rna": "gaussian" if preset == "rsf" else "nb"}
            dataset, model = problem(preset, likelihoods, field=field, missing=6)
            T = SPATIAL[preset]
            result = local(model, model.blocks(dataset))
            torch.testing.assert_close(result.m[:6, :T], result.field_m[:6], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(result.m[:6, T:], torch.zeros(6, 2 - T), atol=1e-3, rtol=0)
            torch.testing.assert_close(
                result.v[:6, T:], result.gamma[T:].expand(6, -1), rtol=0.05, atol=0
            )
            torch.testing.assert_close(
                result.v[:6, :T], result.field_v[:6] + result.gamma[:T], rtol=0.05, atol=0
            )
            assert (result.v[:6].mean(0) > result.v[6:].mean(0)).all()


def test_blocks_change_nothing(subtests):
    for preset, field, stage in product(("gpnsf", "rsf", "pnmf"), FIELDS, (local, mean_field)):
        with subtests.test(preset=preset, field=field, stage=stage.__name__):
            dataset, model = problem(preset, field=field, missing=0 if preset == "rsf" else 4)
            whole = stage(model, model.blocks(dataset))
            parts = stage(problem(preset, field=field)[1], model.blocks(dataset, 17))
            for name in LogFactors.__dataclass_fields__:
                torch.testing.assert_close(
                    getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-4
                )


def test_without_a_local_stage_the_guide_speaks(subtests):
    for preset in SPATIAL:
        with subtests.test(preset=preset):
            dataset, model = problem(preset)
            (block,) = model.blocks(dataset)
            result, (m, v), T = mean_field(model, [block]), model.marginals(block), SPATIAL[preset]
            torch.testing.assert_close((result.m, result.v), (m.detach(), v.detach()))
            torch.testing.assert_close(
                (result.field_m, result.field_v), (m.detach()[:, :T], v.detach()[:, :T])
            )
            assert (result.gamma[:T] == 0).all()
            if model.nonspatial is not None:
                torch.testing.assert_close(
                    result.gamma[T:], (2 * model.nonspatial.log_sigma).exp().detach()
                )


def test_spots_with_fewer_counts_than_factors_are_survived():
    """All loadings are equal and each spot has one count only: what it says about two factors has rank one."""
    rng, n_obs = np.random.default_rng(0), 50
    counts = sp.csr_matrix(
        (
            rng.integers(100, 300, n_obs).astype(np.float32),
            (np.arange(n_obs), rng.integers(0, 6, n_obs)),
        )
    )
    ones = np.ones(n_obs, np.float32)
    coords = rng.uniform(-1, 1, (n_obs, 2)).astype(np.float32)
    dataset = Dataset(
        coords, np.zeros(n_obs, np.int64), (View("rna", "poisson", counts, ones, ones > 0),)
    )
    model = build("nsf", dataset, n_factors=2, n_spatial=2)
    result = local(model, model.blocks(dataset))
    assert torch.isfinite(result.m).all()
    assert ((result.field_v > 0) & (result.field_v < 1.05)).all()


def test_a_dominant_direction_leaves_a_covariance(subtests):
    for size in (1.0, 1e3, 1e6, 1e12, 1e24):
        with subtests.test(size=size):
            direction = torch.tensor([1.0, 2.0, -1.0, 0.5])
            exact = torch.eye(4).double() * 1.5 - 1.5**2 * size / (
                1 + 1.5 * size * 6.25
            ) * torch.outer(direction, direction)
            precision = size * torch.outer(direction, direction) + torch.eye(4) / 1.5
            covariance = local_stage.covariances(precision[None])[0].double()
            assert torch.isfinite(covariance).all()
            assert (torch.linalg.eigvalsh(covariance) > 0).all()
            assert (torch.linalg.eigvalsh(covariance) < 1.5001).all()
            if size <= 1e6:
                np.testing.assert_allclose(covariance, exact, atol=1.5 * max(1e-3, 5e-7 * size))


def test_loadings_and_field_mean_stay_as_they_are():
    dataset, model = problem("gpnsf")
    blocks = model.blocks(dataset)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    field = model.spatial.field.marginals(blocks[0].located)[0].detach()
    result = local(model, blocks)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"spatial.field.u_loc", "spatial.field.log_amplitude"}
    torch.testing.assert_close(result.field_m, field)
    torch.testing.assert_close(
        model.spatial.field.marginals(blocks[0].located)[0], field, rtol=1e-4, atol=1e-4
    )


def drawn(
    preset: str, *, depth: float, n_obs: int = 150
) -> tuple[Dataset, Factorization, torch.Tensor]:
    """Counts drawn from a model with known loadings, and the log factors [N, 2] behind them."""
    rng = np.random.default_rng(0)
    coords = rng.uniform(-0.9, 0.9, (n_obs, 2)).astype(np.float32)
    ones, empty = np.ones(n_obs, np.float32), sp.csr_matrix((n_obs, 30), dtype=np.float32)
    dataset = Dataset(
        coords, np.zeros(n_obs, np.int64), (View("rna", "poisson", empty, ones, ones > 0),)
    )
    model = build(preset, dataset, n_factors=2, n_spatial=SPATIAL[preset], loadings="point")
    view = dict(model.items())["rna"]
    view.loadings.raw.data = torch.as_tensor(
        np.log(depth * rng.gamma(0.5, 1.0, (30, 3)) + 1e-3), dtype=torch.float32
    )
    if model.nonspatial is not None:
        model.nonspatial.log_sigma.data.fill_(np.log(0.7))
    (block,) = without_counts(model, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sites = poutine.trace(model.model).get_trace(block).nodes
    parts = [sites["h_nonspatial"]["value"]] if model.nonspatial is not None else []
    if model.spatial is not None:
        parts.insert(0, model.spatial.field.conditional(sites["u"]["value"], block.located)[0])
    h = torch.cat(parts, 1)
    counts = sp.csr_matrix(sites["rna"]["value"].detach().numpy())
    if model.spatial is not None:
        model.spatial.field.u_loc.data.copy_(sites["u"]["value"])
    return (
        Dataset(coords, dataset.library, (View("rna", "poisson", counts, ones, ones > 0),)),
        model,
        h.detach(),
    )


def test_intervals_of_known_loadings_cover_the_truth(subtests):
    for depth in (0.2, 2.0):
        with subtests.test(depth=depth):
            dataset, model, h = drawn("pnmf", depth=depth)
            result = local(model, model.blocks(dataset))
            assert 0.82 < coverage(h.numpy(), result.m.numpy(), result.v.sqrt().numpy()) < 0.97
            prior = 0.7 * torch.ones_like(h)
            assert ((result.m - h) ** 2).mean() < (0.8 if depth < 1 else 0.3) * (prior**2).mean()


def test_divergences_that_weigh_more_make_spots_less_certain(subtests):
    """``kl_weight`` is the temperature of the counts here too: ten times less is known of a spot."""
    for preset in ("pnmf", "nsf"):
        with subtests.test(preset=preset):
            dataset, model, _ = drawn(preset, depth=2.0)
            spread = []
            for weight in (1.0, 10.0):
                model.kl_weight = weight
                stage = local_stage._LocalStage(model, model.blocks(dataset), {})
                stage.gamma.fill_(0.5)
                stage.sweep(stage.blocks[0], 1, last=True)
                spread.append(stage.variance.detach())
            assert (spread[1] > spread[0]).all()
            assert spread[1].mean() > 2 * spread[0].mean()
            known = 1 / spread[0] - 1 / 0.5, 1 / spread[1] - 1 / 0.5
            assert (known[0] / known[1]).median() == pytest.approx(10, rel=0.3)


def test_the_spread_of_independent_factors_is_learnt():
    dataset, model, _ = drawn("pnmf", depth=5.0, n_obs=300)
    model.nonspatial.log_sigma.data.zero_()
    np.testing.assert_allclose(local(model, model.blocks(dataset)).gamma.sqrt(), 0.7, rtol=0.15)


def test_spots_that_follow_their_field_get_hardly_a_deviation_of_their_own():
    dataset, model, h = drawn("nsf", depth=2.0)
    result = local(model, model.blocks(dataset))
    assert (result.gamma < 0.02).all()
    torch.testing.assert_close(result.m, h, atol=0.3, rtol=0)


def test_the_field_knows_more_than_its_prior_where_spots_are():
    dataset, model, _ = drawn("nsf", depth=2.0)
    blocks = model.blocks(dataset)
    result = local(model, blocks)
    prior = (2 * model.spatial.field.log_amplitude).exp().detach()
    assert (result.field_v < 0.5 * prior).float().mean() > 0.9
    torch.testing.assert_close(
        result.field_v, model.spatial.field.marginals(blocks[0].located)[1].detach()
    )


def test_the_stage_stops_after_its_rounds(monkeypatch):
    dataset, model = problem("gpnsf")
    rounds = []
    original = local_stage._LocalStage.update_gamma
    monkeypatch.setattr(
        local_stage._LocalStage,
        "update_gamma",
        lambda stage: (rounds.append(1), original(stage))[1],
    )
    local(model, model.blocks(dataset, 30))
    assert len(rounds) == len(local_stage.NEWTON_STEPS)


def test_a_spot_with_thousands_of_times_the_counts_of_others_is_explained(patient):
    """Its log factor is beyond 8, where log factors were once cut off."""
    dataset, _ = problem("pnmf", {"rna": "poisson"})
    (view,) = dataset.views
    counts = sp.lil_matrix(view.counts)
    counts[0] = 20_000 * view.counts[0]
    dataset = replace(dataset, views=(replace(view, counts=sp.csr_matrix(counts)),))
    model = build("pnmf", dataset, n_factors=2, n_spatial=0, loadings="point")
    h = local(model, model.blocks(dataset)).m
    ((_, fitted),) = model.items()
    rate = view.size[0] * h[0].exp() @ fitted.loadings.mean[:, :-1].detach().T
    assert float(h[0].max()) > 8.5
    assert float(rate.sum()) == pytest.approx(counts[0].sum(), rel=0.05)
