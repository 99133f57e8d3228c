"""A model on its way through a fit, which may be replaced by one with other factors or a finer field.

The model is trained again where its factors have changed: one has found a place, become spatial or
nonspatial, or is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gpnsf.core import distributed
from gpnsf.core.inference import loading_stage, local_stage, moves, standing, training
from gpnsf.core.inference.bound import elbo, exact_elbo
from gpnsf.core.inference.checkpoint import Checkpoint
from gpnsf.core.inference.finer import finer_basis
from gpnsf.core.inference.left_over import LeftOver, costs
from gpnsf.core.inference.order import CLEAR_Z, Order, misplaced, passed
from gpnsf.core.inference.regroup import regrouped
from gpnsf.core.inference.spatial_test import OwnOrder, SpatialTest, own_order
from gpnsf.core.inference.subset_start import SubsetStart, lone, sample
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.types import Dataset, History

__all__ = ["Build", "Run"]

logger = logging.getLogger("gpnsf")

# a model of a dataset with T spatial factors, of K or another number of factors, and of basis functions
Build = Callable[..., Factorization]
Objective = Callable[[Factorization, list[Block]], float]
TRAINED = 0.5  # Moran's I above which a factor that turns out to be spatial is trained as a field
FINER_LOSS = 1e-3  # of the objective per nonzero count that a finer field may cost


class Run:
    """A model on its way, which may be replaced by one with other factors."""

    model: Factorization
    blocks: list[Block]
    optimisation: training.Optimisation  # of the model as it stands

    def __init__(self, dataset: Dataset, build: Build, options: training.Options) -> None:
        self.dataset, self.build, self.options = dataset, build, options
        self.numbers = np.array([], dtype=int)  # of the factors when the test was last matched
        self.starts: dict[str, float] = {}  # objectives of those that were tried
        self.n_basis: int | None = None  # of the field, where it needs more than usual
        self.has_tried_finer = False
        self.repairs: list[str] = []  # of the climbs before the present one

    def log_factors(self) -> np.ndarray:
        """Means [N, K] of the log factors."""
        return standing.log_factors(self.model, self.blocks).cpu().numpy()

    def sizes(self, m: np.ndarray) -> np.ndarray:
        """Shares [K] of the expected counts that are of each factor [N, K], added over modalities."""
        return standing.shares(self.model, self._tensor(m)).sum(0).cpu().numpy()

    def order(self, test: SpatialTest, m: np.ndarray) -> Order:
        """Order of the factors [N, K] by held-out counts.

        A factor may be like none of the test, which knows less of the counts. So nonspatial ones with
        clear order by the one most like them must show it by their own loadings too.
        """
        found = test.order(m, self.sizes(m))
        if asked := self._ordered(found, m):
            own = self._own_order(test, m)
            found = found.at_most(own.z, own.repeated, np.isin(np.arange(len(own.z)), asked))
        return found

    def _own_order(self, test: SpatialTest, m: np.ndarray) -> OwnOrder:
        """What the counts of the spots of the test tell by the loadings of the model."""
        model, log_factors, seed = self.model, self._tensor(m), self.options["seed"]
        return distributed.from_first(
            lambda: own_order(model, log_factors, self.dataset, self.build, test.rows, seed)
        )

    def begin(self, n_spatial: int, init: str, checkpoint: Checkpoint | None) -> None:
        """The first climb, from a kind of start; large data begin at a smaller fit."""
        self._place(self.build(self.dataset, n_spatial))
        options = self.options
        start: str | SubsetStart = init
        rows, ahead = sample(self.dataset, options["seed"]), lone(self.dataset)
        if rows is not None or ahead:
            start = SubsetStart(self.dataset, rows, ahead, self.build, n_spatial, init, options)
            options = {**options, "schedule": start.left}
        self.optimisation = training.Optimisation(
            self.model, self.dataset, blocks=self.blocks, checkpoint=checkpoint, **options
        )
        self.optimisation.climb(start)
        self.optimisation.leave_checkpoint()
        training.give_back()
        self.starts = self.optimisation.history().starts
        self.numbers = np.arange(self.model.n_factors)

    def restore_lost(self, *, tested: bool) -> None:
        """Look in each modality for a pattern that the fit has lost, and give it a field.

        It takes a place where the least is lost, by joining two factors or dropping one, and stays
        where the objective is higher. Without a test the number of spatial factors stays as it is.
        """
        if not (
            self.model.n_spatial and self.options["schedule"].moves and moves.possible(self.model)
        ):
            return
        left = LeftOver(self.model, self.blocks, self.options["seed"])
        for name in self.model.names:
            while self._restore_one(left, name, tested=tested):
                left = LeftOver(self.model, self.blocks, self.options["seed"])

    def _restore_one(self, left: LeftOver, name: str, *, tested: bool) -> bool:
        """Give a place to the clearest pattern left over of a modality; whether it was worth it."""
        if (pattern := left.pattern(name)) is None:
            return False
        loadings = {other: left.loadings(other, pattern) for other in self.model.names}
        K, T, m = self.model.n_factors, self.model.n_spatial, self.log_factors()
        found = self._place_for(m, pattern, loadings, list(range(K if tested else T)))
        if found is None:
            return False
        kept, place = found
        others = [k for k in range(K) if k != place]
        slot = T - (place < T)
        order = [*others[:slot], place, *others[slot:]]
        before = self._state()
        self._regroup(order, slot + 1, m)
        if kept != place:
            moves.make(moves.Move(((order.index(kept), slot),)), self.model, self.blocks)
        moves.occupy(self.model, self.blocks, slot, pattern.log(), list(loadings.values()))
        return self._is_better(f"a pattern left over of {name}", before)

    def _place_for(
        self,
        m: np.ndarray,
        pattern: torch.Tensor,
        loadings: dict[str, torch.Tensor],
        places: list[int],
    ) -> tuple[int, int] | None:
        """A factor, and the one best joined to it (itself: dropped) so that a pattern [N] has a place.

        None where the fit loses more by it than the pattern gains.
        """
        share = self._largest_shares(m)
        least = min(places, key=lambda k: share[k])
        if share[least] <= standing.SPARE:
            return least, least
        H = self.model.relative(self._tensor(m)).clamp(*MEAN_RANGE).exp().cpu()
        factors = torch.cat([H, pattern.cpu()[:, None]], 1)
        known = {name: view.loadings.mean for name, view in self.model.items()}
        together = {
            name: torch.cat([W[:, :-1], loadings[name][:, None], W[:, -1:]], 1).cpu()
            for name, W in known.items()
        }
        cost = costs(factors, together, self.dataset.views, [*places, H.shape[1]])
        kept, place = sorted(divmod(int(cost[:-1, :-1].argmin()), len(places)))
        return (places[kept], places[place]) if cost[kept, place] < cost[-1, -1] else None

    def judge(self, test: SpatialTest, most_spatial: int) -> None:
        """Make factors spatial or nonspatial, as the test has them; go on where that has changed one."""
        m = self.log_factors()
        order, T = self.order(test, m), self.model.n_spatial
        spatial = np.flatnonzero(passed(order.z[:T])).tolist()
        promoted = self._ordered(order, m)
        if promoted:
            smooth = self._smoothness(m[:, promoted])
            promoted = [k for k, own in zip(promoted, smooth, strict=True) if own > TRAINED]
        both = [*spatial, *promoted]
        chosen = _most_ordered(both, order.rank, most_spatial)
        K = self.model.n_factors
        noise = order.noise if self.model.has_posterior else np.zeros(K, bool)
        others = [k for k in range(K) if k not in chosen and not noise[k]]
        if chosen == list(range(T)) and len(others) == K - T:
            return
        n_lost, n_noise = T - len(spatial), K - len(chosen) - len(others)
        n_promoted = sum(k >= T for k in chosen)
        logger.info(
            "%d spatial factors have no order in held-out counts, %d nonspatial ones do, and %d have less than these",
            n_lost,
            n_promoted,
            len(spatial) + n_promoted - len(chosen),
        )
        logger.info("%d factors are left out, since held-out counts show nothing of them", n_noise)
        if not chosen and not others:
            others = [int(self.sizes(m).argmax())]
        self._regroup([*chosen, *others], len(chosen), m)
        self._go_on()

    def release(self, test: SpatialTest) -> bool:
        """Take the field from factors that hardly follow neighbours, where the objective is higher.

        A factor of single spots that began with a field keeps it otherwise: what it holds of others
        has order. One that is smooth without the field, too, keeps it. Whether any has lost it.
        """
        m, T, K = self.log_factors(), self.model.n_spatial, self.model.n_factors
        in_use = np.flatnonzero(self._used(m)[:T])
        if not (len(in_use) and self.model.has_posterior):
            return False
        beyond, size = self._own_order(test, m).beyond, self.sizes(m)
        out = in_use[misplaced(beyond[in_use], size[in_use])]
        while len(out):
            before, fields = self._state(), [k for k in range(T) if k not in out]
            self._regroup([*fields, *out, *range(T, K)], len(fields), m)
            if not self._is_better(f"{len(out)} spatial factors as nonspatial ones", before):
                return False
            rough = self._smoothness(self.log_factors()[:, len(fields) : T]) <= TRAINED
            if rough.all():
                return True
            logger.info("%d of them are smooth, and spatial again", (~rough).sum())
            self._restore(before)
            out = out[rough]
        return False

    def refine_field(self) -> None:
        """Give fields that are too rough for their basis functions more of these, once, as far as spots can tell.

        Noise beyond that of Poisson counts looks rough, too. So the exact likelihoods decide, and
        more functions stay unless the objective clearly falls: the weights' independent
        approximations cost more the more they are.
        """
        spatial = self.model.spatial
        if spatial is None or self.has_tried_finer:
            return
        if (n_basis := finer_basis(spatial.field, self.dataset)) is None:
            return
        self.has_tried_finer = True
        before, self.n_basis = self._state(), n_basis
        self._regroup(list(range(self.model.n_factors)), self.model.n_spatial, self.log_factors())
        change = f"finer fields, {n_basis} basis functions per axis"
        least = -FINER_LOSS * self.dataset.nnz
        if not self._is_better(change, before, exact_elbo, least=least, moves=0):
            self.n_basis = None

    def _state(self) -> tuple[Any, ...]:
        """All that a change of the factors changes."""
        return self.model, self.blocks, self.numbers, self.optimisation, self.repairs

    def _restore(self, state: tuple[Any, ...]) -> None:
        """Undo a change of the factors."""
        self.model, self.blocks, self.numbers, self.optimisation, self.repairs = state

    def _smoothness(self, m: np.ndarray) -> np.ndarray:
        """Moran's I [K] of log factors [N, K]."""
        return standing.order_of(self._tensor(m), standing.neighbours(self.blocks))

    def _is_better(
        self,
        change: str,
        before: tuple[Any, ...],
        objective: Objective | None = None,
        *,
        least: float = 0.0,
        **course: int,
    ) -> bool:
        """Let a changed model climb, and undo the change where the objective does not gain more than the least."""
        model, blocks, *_ = before
        objective = objective or elbo
        value = objective(model, blocks)
        self._go_on(**course)
        gain = objective(self.model, self.blocks) - value
        is_better = gain > least  # not where it cannot be computed
        logger.info("%s: objective %+.0f, %s", change, gain, "kept" if is_better else "undone")
        if not is_better:
            self._restore(before)
        return is_better

    def _go_on(self, **course: int) -> None:
        """Let the model climb as it stands, a part of its course otherwise than usual."""
        course = {"pick_steps": 0, "kernel_steps": 15, "min_steps": 30, "moves": 2, **course}
        schedule = replace(self.options["schedule"], **course)
        options: training.Options = {**self.options, "schedule": schedule}
        self.repairs = self.repairs + self.optimisation.history().repairs
        self.optimisation = training.Optimisation(
            self.model, self.dataset, blocks=self.blocks, nested=True, **options
        )
        self.optimisation.climb(None)
        self.numbers = np.arange(self.model.n_factors)

    def settle(self) -> None:
        """The last steps, once, where all factors are found."""
        self.optimisation.settle()

    def history(self) -> History:
        """Of the model as it stands, with what was told of those before."""
        last = self.optimisation.history()
        return replace(last, starts=self.starts, repairs=self.repairs + last.repairs)

    def end(self, order: Order, most_spatial: int, *, local: bool) -> local_stage.LogFactors:
        """Join equal factors, drop unused ones, give spatial ones a field; then loadings and spots."""
        adopted: dict[int, moves.Adopted] = {}
        if self.model.has_posterior:
            graph = standing.neighbours(self.blocks)
            joined: dict[int, moves.Adopted] = {}
            if local:
                ordered = self._ordered(order, self.log_factors())
                joined = moves.join(self.model, self.blocks, graph, ordered, order.z)
            m, T = self.log_factors(), self.model.n_spatial
            used = self._used(m)
            used[list(joined)] = True  # with what the field leaves to deviations
            z = order.z[:T]
            without = ~passed(z) & ~np.isnan(z)  # has come since the test judged
            spatial = [k for k in range(T) if used[k] and not without[k]]
            ordered = self._ordered(order, m) if local and T else []
            ordered = [k for k in ordered if used[k]]
            chosen = _most_ordered([*spatial, *ordered], order.rank, most_spatial)
            spatial, promoted = [k for k in chosen if k < T], [k for k in chosen if k >= T]
            if promoted or len(spatial) < T or not all(used):
                others = [k for k in range(self.model.n_factors) if used[k] and k not in chosen]
                self._regroup([*spatial, *promoted, *others], len(spatial) + len(promoted), m)
            adopted = {spatial.index(k): own for k, own in joined.items() if k in spatial}
            adopted |= moves.adopt(self.model, self.blocks, graph, self._tensor(m[:, promoted]))
        if not local:
            return local_stage.mean_field(self.model, self.blocks)
        loading_stage.settle(self.model, self.blocks, adopted)
        return local_stage.local(self.model, self.blocks, adopted)

    def _place(self, model: Factorization) -> None:
        self.model, self.blocks = model, model.blocks(self.dataset, self.options["block_size"])

    def _regroup(self, order: list[int], n_spatial: int, m: np.ndarray) -> None:
        """The factors named, the first ones spatial."""
        old, self.numbers = self.model, self.numbers[order]
        self._place(self.build(self.dataset, n_spatial, len(order), self.n_basis))
        regrouped(old, self.model, self.blocks, self._tensor(m), order)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        """An array on the device of the model."""
        return torch.as_tensor(values, device=self.model.device)

    def _used(self, m: np.ndarray) -> np.ndarray:
        """Factors [K] that the counts of some modality ask for.

        The largest one where they ask for none.
        """
        share = self._largest_shares(m)
        return (share > standing.ALIVE) | (share == share.max())

    def _largest_shares(self, m: np.ndarray) -> np.ndarray:
        """Share [K] of the expected counts that are of each factor, in the modality that has most of it."""
        return standing.shares(self.model, self._tensor(m)).amax(0).cpu().numpy()

    def _ordered(self, order: Order, m: np.ndarray) -> list[int]:
        """Nonspatial factors in use with clear spatial order, or smooth ones with some, the clearest first."""
        T, used = self.model.n_spatial, self._used(m)
        clear = order.clear(T) & used
        some = np.flatnonzero((order.z > CLEAR_Z) & used & ~clear)
        some = some[some >= T]
        if len(some):
            clear[some] = self._smoothness(m[:, some]) > TRAINED
        return [int(k) for k in np.argsort(-order.z) if clear[k]]


def _most_ordered(factors: list[int], rank: np.ndarray, most: int) -> list[int]:
    """Of some factors those that the places for spatial ones go to: all, or those of most order."""
    places = set(sorted(factors, key=lambda k: -rank[k])[:most])
    return [k for k in factors if k in places]
