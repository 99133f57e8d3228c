"""Several processes at one fit.

Each walks over its share of the row blocks, and sums over blocks are summed over processes.

All else every process does for itself, or the first one does it for all. What a branch depends on
is the same number in all processes, so that they meet at the same sums. Without a process group of
torch.distributed there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "add_up",
    "agree",
    "as_first",
    "by_block",
    "each_from_first",
    "from_first",
    "gathered",
    "join",
    "leave",
    "mine",
    "number",
    "rank",
    "total",
]

PATIENCE = timedelta(hours=2)  # longer than the first process may work while the others wait for it

T = TypeVar("T")


class _Group:
    """State of the process group: whether it takes part in what happens now."""

    joined = False  # by us
    paused = False


def join() -> None:
    """Join the processes that torchrun has started, if it has.

    A group that exists is left as it is.
    """
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked == 1 or dist.is_initialized():
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"Expected the environment of torchrun where WORLD_SIZE={asked}; found no {', '.join(missing)}. Start the "
            f"processes by torchrun, or unset WORLD_SIZE."
        )
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        here, n_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if here > n_gpus:
            raise ValueError(
                f"Expected a GPU for each process; got {here} processes and {n_gpus} GPU(s). Start {n_gpus}, or set "
                f"CUDA_VISIBLE_DEVICES= to fit on the CPU."
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    _Group.joined = True


def leave() -> None:
    """Leave the group that :func:`join` has joined."""
    if _Group.joined:
        _Group.joined = False
        dist.destroy_process_group()


def number() -> int:
    """How many processes share the work that is done now."""
    return (
        dist.get_world_size()
        if dist.is_available() and dist.is_initialized() and not _Group.paused
        else 1
    )


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if number() > 1 else 0


def mine(parts: list[T]) -> list[T]:
    """The parts that are this process's share, neighbours of one another."""
    n = number()
    if len(parts) < n:
        raise ValueError(
            f"Expected at least one block of rows for each of {n} processes; got {len(parts)} blocks. Start fewer "
            f"processes, or pass a smaller block_size."
        )
    return parts[rank() * len(parts) // n : (rank() + 1) * len(parts) // n]


def add_up(*tensors: Tensor) -> None:
    """Put the sums over processes in the place of tensors of one type."""
    if number() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _in_contact():
        dist.all_reduce(flat)
    for tensor, part in zip(
        tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(part.view_as(tensor))


def total(value: float) -> float:
    """Sum of a number over processes."""
    if number() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    add_up(box)
    return float(box)


def by_block(blocks: list[Any], make: Callable[[Any], Tensor]) -> Tensor:
    """Rows [N, ..] of all blocks, each made by the process whose block it is."""
    parts = [(block, make(block)) for block in mine(blocks)]
    if number() == 1:
        return torch.cat([part for _, part in parts])
    first = parts[0][1]
    whole = first.new_zeros((blocks[-1].rows.stop, *first.shape[1:]))
    for block, part in parts:
        whole[block.rows] = part
    add_up(whole)
    return whole


def gathered(values: Tensor, blocks: list[Any]) -> Tensor:
    """Values [N, ..] whose rows each come from the process whose block they are in."""
    return values if number() == 1 else by_block(blocks, lambda block: values[block.rows])


def as_first(tensor: Tensor) -> Tensor:
    """The same tensor as the first process has.

    For values of which two machines may compute different last digits.
    """
    if number() > 1:
        with _in_contact():
            dist.broadcast(tensor, 0)
    return tensor


def from_first(make: Callable[[], T]) -> T:
    """Result of the first process, for which the others wait; where it fails, all do."""
    if number() == 1:
        return make()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            with _paused():
                box[0] = make()
        except BaseException as error:  # whatever it is, the others must not wait
            box[1] = f"{type(error).__name__}: {error}"
            _tell(box)
            raise
    _tell(box)
    if box[1] is not None:
        raise ConnectionAbortedError(f"Stopped because the first process did: {box[1]}")
    return box[0]


def each_from_first(items: Iterable[T]) -> Iterator[T]:
    """Items that the first process gets from an iterable, one by one."""
    source = iter(items)
    while (item := from_first(lambda: next(source, None))) is not None:
        yield item


def agree(facts: Any, what: str) -> None:
    """Refuse to go on where the processes do not have the same facts."""
    if number() == 1:
        return
    found: list[Any] = [None] * number()
    with _in_contact():
        dist.all_gather_object(found, facts)
    if any(other != found[0] for other in found):
        raise ValueError(
            f"Expected the same {what} in all {number()} processes; got {found}. Give every process the same call."
        )


def _tell(box: list[Any]) -> None:
    """Fill the boxes of all processes as that of the first one."""
    with _in_contact():
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))


@contextmanager
def _paused() -> Iterator[None]:
    """Work alone: the others are waiting."""
    _Group.paused = True
    try:
        yield
    finally:
        _Group.paused = False


@contextmanager
def _in_contact() -> Iterator[None]:
    """Say in words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"Expected {number()} processes to work until the fit is complete; process {rank()} lost contact with "
            f"another one ({str(error).splitlines()[0]}). See why that one stopped, then start all of them again."
        ) from error
