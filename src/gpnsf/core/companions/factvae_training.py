"""The training of FactVAE.

Both autoencoders together and, after each step, the encoder of peaks by that of genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

from gpnsf.core.companions.factvae import (
    Autoencoder,
    Counts,
    Decoder,
    Encoder,
    alignment_loss,
    regulatory_loss,
)
from gpnsf.core.progress import Progress

__all__ = ["Measured", "Outcome", "Plan", "axes", "responses", "train"]

HIDDEN = ((512, 256), (256,))  # widths of the encoders of genes and peaks
# weights of the two likelihoods (genes, peaks) and of either divergence
FIT_WEIGHTS, KL_WEIGHT = (0.1, 0.002), 0.001
DECAY = 0.995  # of both rates, an epoch
ALIGNMENT_RATE = 0.5  # of the second optimiser, as a share of the first one's
HELD_OUT = 0.1  # share of the cells that say when to stop
PATIENCE, GAIN = 5, 1e-3  # epochs that training goes on without a relative gain of their loss


@dataclass(frozen=True)
class Measured:
    """One modality of N cells."""

    counts: sp.csr_matrix  # [N, P]
    scores: np.ndarray  # [N, C] what the encoder reads


@dataclass(frozen=True)
class Plan:
    """How to train."""

    n_latent: int = 50
    as_published: bool = False
    alignment: bool = True
    regulatory_weight: float = 1.0
    max_epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """A trained pair, genes first."""

    codes: list[np.ndarray]  # [N, d] means
    embeddings: list[np.ndarray]  # [P, d]
    base: list[np.ndarray]  # [P] log shares of the features at codes of zero
    history: dict[str, np.ndarray]  # losses by epoch
    converged: bool


def train(
    rna: Measured,
    atac: Measured,
    pairs: np.ndarray,
    plan: Plan,
    *,
    device: torch.device,
    progress: bool = False,
) -> Outcome:
    """Train both autoencoders on paired cells.

    ``pairs`` [2, n] are genes and peaks that are to have like embeddings.
    """
    with _randomness(plan.seed, device):
        run = _Run([rna, atac], pairs, plan, device)
        with Progress("factvae", plan.max_epochs, shown=progress) as bar:
            for _ in range(plan.max_epochs):
                run.epoch()
                bar.step()
                if run.settled:
                    break
            bar.converged = run.settled
        return run.outcome()


def axes(codes: list[np.ndarray]) -> list[np.ndarray]:
    """The part ``B`` [r, d] of each modality's codes [N, d] in one space, r = min(N, 2d).

    Centred codes are ``sqrt(N) Q B``, with one Q of orthogonal columns for both.
    """
    both = np.hstack([own - own.mean(axis=0) for own in codes]).astype(np.float64)  # [N, 2d]
    return np.split(np.linalg.qr(both, mode="r") / np.sqrt(len(both)), 2, axis=1)


def responses(codes: list[np.ndarray], embeddings: list[np.ndarray]) -> list[np.ndarray]:
    """Coordinates [P, r] of the features of both modalities in one space (46).

    They are made from codes [N, d] and embeddings [P, d].

    The cosine of two features is the correlation over cells of their log shares, each minus the
    cell's mean over features; the length of one is its standard deviation. Unlike cosines of
    embeddings, neither depends on the axes of the codes.
    """
    return [
        (own @ basis.T).astype(np.float32)
        for own, basis in zip(embeddings, axes(codes), strict=True)
    ]


class _Cells:
    """One modality on a device, read by rows."""

    def __init__(self, measured: Measured, device: torch.device) -> None:
        counts = measured.counts
        as_tensor = lambda array, dtype: torch.as_tensor(array, dtype=dtype, device=device)
        self.pointers = as_tensor(counts.indptr, torch.int64)
        self.columns, self.values = (
            as_tensor(counts.indices, torch.int64),
            as_tensor(counts.data, torch.float32),
        )
        self.depth = as_tensor(np.asarray(counts.sum(axis=1)).ravel(), torch.float32)
        self.scores = as_tensor(measured.scores, torch.float32)

    def batch(self, rows: Tensor) -> tuple[Tensor, Counts]:
        """Scores and counts of some rows [n]."""
        begin, length = self.pointers[rows], self.pointers[rows + 1] - self.pointers[rows]
        row = torch.arange(len(rows), device=rows.device).repeat_interleave(length)  # [nnz]
        first = (begin - length.cumsum(0) + length)[row]
        entry = first + torch.arange(len(row), device=rows.device)
        return self.scores[rows], Counts(
            row, self.columns[entry], self.values[entry], self.depth[rows]
        )


class _Run:
    """Both modalities, their autoencoders and optimisers, and what has happened to them."""

    def __init__(
        self, measured: list[Measured], pairs: np.ndarray, plan: Plan, device: torch.device
    ) -> None:
        self.plan, self.device = plan, device
        self.cells = [_Cells(modality, device) for modality in measured]
        self.nets = [
            _autoencoder(*parts, plan).to(device)
            for parts in zip(measured, HIDDEN, FIT_WEIGHTS, strict=True)
        ]
        self.pairs = torch.as_tensor(pairs, dtype=torch.int64, device=device)
        self.joint = torch.optim.Adam(
            [p for net in self.nets for p in net.parameters()], lr=plan.learning_rate
        )
        student = self.nets[1].encoder.parameters()
        self.aligning = torch.optim.Adam(student, lr=ALIGNMENT_RATE * plan.learning_rate)
        moving = (self.joint, self.aligning) if plan.alignment else (self.joint,)
        self.schedules = [ExponentialLR(optimiser, DECAY) for optimiser in moving]
        order = torch.randperm(measured[0].counts.shape[0])
        n_held = max(1, round(HELD_OUT * len(order)))
        self.held, self.trained = order[:n_held].to(device), order[n_held:]
        self.history: dict[str, list[float]] = {
            name: [] for name in ("joint", "regulatory", "alignment", "held_out")
        }
        self.best, self.waited = np.inf, 0  # loss of held-out cells, and epochs since then

    def epoch(self) -> None:
        """One pass over the cells, in batches of nearly equal size, then the held-out loss."""
        for net in self.nets:
            net.train()
        order = self.trained[torch.randperm(len(self.trained))].to(self.device)
        steps = [
            self._step(rows)
            for rows in order.tensor_split(max(len(order) // self.plan.batch_size, 1))
        ]
        for schedule in self.schedules:
            schedule.step()
        # one transfer an epoch
        losses = torch.stack([torch.stack(step) for step in steps]).mean(dim=0)
        for name, value in zip(self.history, [*losses.tolist(), self._held_out()], strict=True):
            self.history[name].append(value)

    @property
    def settled(self) -> bool:
        """Whether the loss of held-out cells has stopped falling."""
        return self.waited >= PATIENCE

    def outcome(self) -> Outcome:
        """Codes of all cells, and embeddings."""
        history = {name: np.array(values) for name, values in self.history.items()}
        with torch.no_grad():
            codes = [
                _numpy(net.encoder(cells.scores)[0])
                for net, cells in zip(self.nets, self.cells, strict=True)
            ]
            embeddings = [_numpy(net.decoder.compared) for net in self.nets]
            base = [
                _numpy(net.decoder.log_shares(torch.zeros_like(net.decoder.features[:1]))[0])
                for net in self.nets
            ]
        return Outcome(codes, embeddings, base, history, self.settled)

    def _step(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of both (42), then one of the student alone (44).

        Their losses and that of the pairs.
        """
        batches = [cells.batch(rows) for cells in self.cells]
        parts = [net.loss(*batch) for net, batch in zip(self.nets, batches, strict=True)]
        joint, regulatory = parts[0] + parts[1], torch.zeros((), device=self.device)
        if self.plan.regulatory_weight and self.pairs.shape[1]:
            genes, peaks = (net.decoder.compared for net in self.nets)
            regulatory = regulatory_loss(genes, peaks, self.pairs)
            joint = joint + self.plan.regulatory_weight * regulatory.exp()
        self.joint.zero_grad()
        joint.backward()
        self.joint.step()
        alignment = (
            self._align(*(scores for scores, _ in batches))
            if self.plan.alignment
            else torch.zeros_like(joint)
        )
        return joint.detach(), regulatory.detach(), alignment.detach()

    def _align(self, of_teacher: Tensor, of_student: Tensor) -> Tensor:
        """Move the encoder of peaks towards similarities of cells under the encoder of genes."""
        teacher, student = (net.encoder for net in self.nets)
        with torch.no_grad():
            wanted = teacher.draw(of_teacher)
        loss = alignment_loss(wanted, student.draw(of_student))
        self.aligning.zero_grad()
        loss.backward()
        self.aligning.step()
        return loss

    @torch.no_grad()
    def _held_out(self) -> float:
        """Loss of held-out cells, at the means of their codes, and how long it has not fallen."""
        loss = 0.0
        for net, cells in zip(self.nets, self.cells, strict=True):
            net.eval()
            loss += net.loss(*cells.batch(self.held), draw=False).item()
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"Expected finite losses; got {loss} for the cells held out, in epoch {len(self.history['held_out']) + 1}. "
                "Lower `learning_rate`, or check the counts for extreme values."
            )
        better = not np.isfinite(self.best) or loss < self.best - GAIN * abs(self.best)
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)
        return loss


def _autoencoder(
    measured: Measured, hidden: tuple[int, ...], fit_weight: float, plan: Plan
) -> Autoencoder:
    """One modality's networks.

    Features begin at their share of all counts, each at half a count more.
    """
    total = np.asarray(measured.counts.sum(axis=0, dtype=np.float64)).ravel() + 0.5
    encoder = Encoder(measured.scores.shape[1], hidden, plan.n_latent)
    decoder = Decoder(total / total.sum(), plan.n_latent, as_published=plan.as_published)
    return Autoencoder(encoder, decoder, fit_weight=fit_weight, kl_weight=KL_WEIGHT)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


@contextmanager
def _randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside, and leave its random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
