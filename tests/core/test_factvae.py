from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from pyro.distributions import ZeroInflatedNegativeBinomial
from reference import zinb_log_prob
from scipy.stats import nbinom
from torch.nn import functional

from gpnsf.core.companions.factvae import (
    Autoencoder,
    Counts,
    Decoder,
    Encoder,
    alignment_loss,
    regulatory_loss,
    zinb,
)


def sparse(x):
    """Counts [n, P] by their nonzeros."""
    x = torch.as_tensor(np.asarray(x), dtype=torch.float32)
    row, column = torch.nonzero(x, as_tuple=True)
    return Counts(row, column, x[row, column], x.sum(dim=1))


@pytest.fixture
def entries():
    """Counts with means, dispersions and logits of each entry."""
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 3.0, (6, 9))).astype(np.float32)
    log_mean = rng.normal(size=(6, 9))
    theta = rng.gamma(2.0, 1.0, (6, 9))
    logits = 2 * rng.normal(size=(6, 9))
    return x, *(
        torch.as_tensor(values, dtype=torch.float32) for values in (log_mean, theta, logits)
    )


def test_log_likelihood_is_that_of_a_naive_loop_and_of_pyro(entries):
    x, log_mean, theta, logits = entries
    expected = sum(
        zinb_log_prob(float(x[at]), math.exp(log_mean[at]), float(theta[at]), float(logits[at]))
        for at in np.ndindex(x.shape)
    )
    assert zinb(sparse(x), log_mean, theta, logits).item() == pytest.approx(expected, rel=1e-5)
    pyro = ZeroInflatedNegativeBinomial(theta, logits=log_mean - theta.log(), gate_logits=logits)
    assert pyro.log_prob(torch.as_tensor(x)).sum().item() == pytest.approx(expected, rel=1e-5)


def test_without_zero_inflation_it_is_scipys_negative_binomial(entries):
    x, log_mean, theta, _ = entries
    found = zinb(sparse(x), log_mean, theta[:1], torch.full_like(log_mean, -40.0)).item()
    mean, size = log_mean.double().exp().numpy(), theta[:1].double().numpy()
    assert found == pytest.approx(nbinom.logpmf(x, size, size / (size + mean)).sum(), rel=1e-5)


def test_probabilities_sum_to_one(subtests):
    for mean, theta, logit in ((0.3, 0.5, -1.0), (4.0, 2.0, 1.5), (2.0, 30.0, -6.0)):
        with subtests.test(mean=mean, theta=theta, logit=logit):
            x = np.arange(400, dtype=np.float32)[:, None]
            of_each = [
                zinb(sparse(x[i : i + 1]), *one(math.log(mean), theta, logit)).item()
                for i in range(len(x))
            ]
            assert np.exp(of_each).sum() == pytest.approx(1.0, abs=1e-4)


def one(*values):
    return (torch.full((1, 1), value) for value in values)


def test_values_and_gradients_stay_finite(subtests):
    for log_mean, theta, logit in product((-60.0, 0.0, 25.0), (1e-8, 1.0, 1e6), (-60.0, 0.0, 60.0)):
        with subtests.test(log_mean=log_mean, theta=theta, logit=logit):
            for x in (0.0, 1.0, 1e6):
                values = [value.requires_grad_() for value in one(log_mean, theta, logit)]
                loss = zinb(sparse([[x]]), *values)
                loss.backward()
                assert torch.isfinite(loss)
                assert all(torch.isfinite(value.grad).all() for value in values)


def decoder(*, as_published, n_features=7, n_latent=3):
    torch.manual_seed(0)
    share = np.arange(1, n_features + 1) / np.arange(1, n_features + 1).sum()
    return Decoder(share, n_latent, as_published=as_published), share


def test_shares_sum_to_one_and_begin_at_those_of_the_features():
    ours, share = decoder(as_published=False)
    codes = torch.randn(5, 3)
    np.testing.assert_allclose(ours.log_shares(codes).exp().sum(dim=1).detach(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        ours.log_shares(torch.zeros(1, 3)).exp()[0].detach(), share, rtol=1e-5
    )


def test_shares_do_not_depend_on_the_mean_of_the_embeddings():
    ours, _ = decoder(as_published=False)
    codes = torch.randn(5, 3)
    shares, compared = ours.log_shares(codes), ours.compared
    with torch.no_grad():
        ours.features += 5.0
    torch.testing.assert_close(ours.log_shares(codes), shares, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.compared, compared, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(compared.mean(dim=0).detach(), 0, atol=1e-6)


def test_the_published_decoder_has_three_matrices_and_dispersions_by_softmax():
    published, _ = decoder(as_published=True)
    assert {name for name, _ in published.named_parameters()} == {"features", "zeros", "dispersion"}
    codes = torch.randn(5, 3)
    theta = published.theta(codes)
    torch.testing.assert_close(theta, torch.softmax(codes @ published.dispersion.T, dim=1).exp())
    assert (theta >= 1).all()
    assert (theta <= math.e).all()
    torch.testing.assert_close(published.zero_logits(codes), codes @ published.zeros.T)
    torch.testing.assert_close(
        published.log_shares(codes), functional.log_softmax(codes @ published.features.T, dim=1)
    )
    assert published.compared is published.features


def test_free_dispersions_are_those_of_features():
    ours, _ = decoder(as_published=False)
    assert ours.theta(torch.randn(5, 3)).shape == (1, 7)
    np.testing.assert_allclose(ours.theta(torch.randn(5, 3)).detach(), 1.0, rtol=1e-5)


def test_expected_totals_are_those_of_the_cells():
    ours, _ = decoder(as_published=False)
    counts, codes = sparse(np.random.default_rng(0).poisson(2.0, (5, 7))), torch.zeros(5, 3)
    log_mean = ours.log_shares(codes) + counts.depth.log()[:, None]
    np.testing.assert_allclose(log_mean.exp().sum(dim=1).detach(), counts.depth, rtol=1e-5)
    expected = zinb(counts, log_mean, ours.theta(codes), ours.zero_logits(codes)) / 5
    torch.testing.assert_close(ours.log_prob(codes, counts), expected)


def test_the_loss_is_a_weighted_bound():
    torch.manual_seed(1)
    encoder = Encoder(4, (6,), 3).eval()
    scores, counts = torch.randn(5, 4), sparse(np.random.default_rng(0).poisson(2.0, (5, 7)))
    net = Autoencoder(encoder, decoder(as_published=False)[0], fit_weight=0.3, kl_weight=0.7)
    loc, log_var = encoder(scores)
    posterior = torch.distributions.Normal(loc, (0.5 * log_var).exp())
    kl = (
        torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
        .sum(dim=1)
        .mean()
    )
    expected = 0.7 * kl - 0.3 * net.decoder.log_prob(loc, counts)
    torch.testing.assert_close(net.loss(scores, counts, draw=False), expected)
    assert net.loss(scores, counts) != net.loss(scores, counts)  # draws


def test_encoders_begin_as_xavier_normal_and_drop_out_while_they_train():
    torch.manual_seed(0)
    encoder = Encoder(200, (300,), 3)
    weight = encoder.body[0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.05)
    scores = torch.randn(4, 200)
    assert not torch.equal(encoder(scores)[0], encoder(scores)[0])
    encoder.eval()
    torch.testing.assert_close(encoder(scores)[0], encoder(scores)[0])


def test_regulatory_loss_is_the_squared_distance_of_cosines_from_one():
    rng = np.random.default_rng(0)
    genes, peaks = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    pairs = np.array([[0, 1, 3], [5, 2, 2]])
    cosines = [
        genes[i] @ peaks[j] / np.linalg.norm(genes[i]) / np.linalg.norm(peaks[j])
        for i, j in pairs.T
    ]
    found = regulatory_loss(torch.as_tensor(genes), torch.as_tensor(peaks), torch.as_tensor(pairs))
    assert found.item() == pytest.approx(np.mean([(cosine - 1) ** 2 for cosine in cosines]))


def test_alignment_compares_structures_whichever_the_axes():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(8, 3))
    turned = torch.as_tensor(2.5 * codes @ np.linalg.qr(rng.normal(size=(3, 3)))[0])
    codes, other = torch.as_tensor(codes), torch.as_tensor(rng.normal(size=(8, 3)))
    assert alignment_loss(codes, turned).item() == pytest.approx(0, abs=1e-12)
    unit = [values / values.norm(dim=1, keepdim=True) for values in (codes, other)]
    first, second = (values @ values.T for values in unit)
    expected = np.mean(
        [1 - (a @ b / a.norm() / b.norm()).item() for a, b in zip(first, second, strict=True)]
    )
    assert alignment_loss(codes, other).item() == pytest.approx(expected)
