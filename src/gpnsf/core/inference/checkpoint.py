"""The state of a fit between two steps, and the file that holds it.

Numbers and JSON, never a pickle.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import reprlib
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpnsf.core.inference.state import State, Walk
from gpnsf.core.types import Dataset, parts

__all__ = ["Checkpoint", "digest", "fingerprint", "tell_interruption"]

logger = logging.getLogger("gpnsf")

FORMAT = 2
VERSIONS = ("gpnsf", "torch", "pyro-ppl")  # other versions may give other bits
PATIENCE = 50  # time between two writes over the time that a write takes
UNREADABLE = (
    ArithmeticError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


_WALK = {
    "elbo": [0.0],
    "seconds": [0.0],
    "phase": [""],
    "halvings": 0,
    "stuck": False,
    "best_elbo": 0.0,
}
_PLACES = ("best", "here")
_STATE: dict[str, object] = {
    "starts": {"": 0.0},
    "repairs": [""],
    "phase": 0,
    "step": 0,
    "tried": [""],
    "moved": False,
    "converged": False,
}
_TENSORS = ("moments", "counts", "random", "random_cuda")


def fingerprint(
    model: nn.Module, dataset: Dataset, arguments: Mapping[str, object]
) -> dict[str, object]:
    """Arguments, versions, data, and the model as it was built.

    They must be the same for a state to be one of this fit.
    """
    facts: dict[str, object] = {
        "format": FORMAT,
        **arguments,
        **{name: version(name) for name in VERSIONS},
    }
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str)
        }
        facts |= {
            prefix + key: value
            for key, value in plain.items()
            if key[0] != "_" and key not in ("training", "weight")
        }
        facts[f"{prefix}class"] = type(module).__name__
    tensors = [*model.named_parameters(), *model.named_buffers()]
    facts["shapes"] = {name: list(value.shape) for name, value in tensors}
    facts["learnt"] = [name for name, value in tensors if value.requires_grad]
    facts["initial values"] = digest(*(value.detach().cpu().numpy() for _, value in tensors))
    facts["coordinates"] = digest(dataset.coords, dataset.library)
    facts["batches"] = None if dataset.batch is None else digest(dataset.batch)
    for view in dataset.views:
        facts[f"shape of {view.name}"] = list(view.counts.shape)
        facts[f"counts of {view.name}"] = _digest_of_counts(view.counts)
        facts[f"size factors of {view.name}"] = digest(view.size, view.observed)
        facts[f"weight of {view.name}"] = view.weight  # last: it may follow from the counts
    return json.loads(json.dumps(facts))


def digest(*arrays: np.ndarray) -> str:
    """Hash of the bytes of arrays."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _digest_of_counts(counts: Any) -> list[str]:
    """Hashes of values, features and lengths of rows, whatever the parts in which they are read."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(3)]
    for _, part in parts(counts):
        arrays = (
            part.data,
            part.indices.astype(np.int32, copy=False),
            np.diff(part.indptr).astype(np.int32),
        )
        for digest, array in zip(digests, arrays, strict=True):
            digest.update(np.ascontiguousarray(array).data)
    return [digest.hexdigest() for digest in digests]


class Checkpoint:
    """A file that holds the state of one fit.

    It is written beside its place and then moved there, so that it is whole at any moment. A write
    comes as soon as the time since the last one is fifty times what a write takes: the first step
    is written, and writing costs two per cent at most.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._check()
        self._fingerprint: dict[str, object] = {}
        self._kept: State | None = None
        self._written, self._cost, self._failed = -math.inf, 0.0, False

    def _check(self) -> None:
        """Find out before the fit whether the file can be written."""
        remedy = "Name a file in a directory that exists, can be written to and has room"
        try:
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._partial = self.path.with_name(self.path.name + ".tmp")
            self._partial.write_bytes(b"0")
            self._partial.unlink()
        except (OSError, ValueError) as error:
            kind = type(error) if isinstance(error, OSError) else ValueError
            found = f"{str(self.path)!r} ({_reason(error)})"
            raise kind(
                f"Expected `checkpoint` to be a file that can be written; got {found}. {remedy}."
            ) from error

    def open(self, fingerprint: dict[str, object], like: State) -> State | None:
        """The state that the file holds, if there is one.

        It must be of this very fit, with tensors shaped as in ``like``.
        """
        self._fingerprint = fingerprint
        if not self.path.exists():
            return None
        with self._refusal(), zipfile.ZipFile(self.path) as archive:
            facts = json.loads(_array(archive, "facts", np.dtype(np.uint8)).tobytes())
            self._compare(facts["fingerprint"])
            state = _unpack(archive, facts, like)
        logger.info("Going on after step %d, as %s says.", len(state.walk.elbo), self.path)
        self._kept = state
        return state

    def keep(self, state: State) -> None:
        """Take a state that nobody will change, and write it down if it is time."""
        self._kept = state
        if time.perf_counter() - self._written >= PATIENCE * self._cost:
            self.flush()

    def flush(self) -> bool:
        """Write down the last state that was kept, and say whether the file now holds it."""
        if self._kept is None:
            return False
        began = time.perf_counter()
        try:
            self._write(self._kept)
        except OSError as error:
            if not self._failed:
                text = "The checkpoint %s could not be written (%s); the fit goes on, the file is as it was before."
                logger.warning(text, self.path, _reason(error))
            self._failed = True
            return False
        finally:
            self._written = time.perf_counter()
            self._cost = self._written - began
        return True

    def remove(self) -> None:
        """Delete the file, which a fit that is complete has no use for."""
        self.path.unlink(missing_ok=True)

    def _write(self, state: State) -> None:
        """Replace the file as a whole."""
        facts, arrays = _pack(state)
        text = json.dumps({"fingerprint": self._fingerprint, **facts}).encode()
        try:
            with self._partial.open("wb") as file:
                np.savez(file, **{"facts": np.frombuffer(text, dtype=np.uint8), **arrays})
                file.flush()
                os.fsync(file.fileno())
            self._partial.replace(self.path)
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise

    def _compare(self, found: Any) -> None:
        """Refuse the state of another fit by name of what differs."""
        wanted = self._fingerprint
        if not isinstance(found, dict):
            raise TypeError("no fingerprint")
        names = [
            name
            for name in [*wanted, *(found.keys() - wanted)]
            if found.get(name) != wanted.get(name)
        ]
        if names:
            texts = [
                f"{name} ({_short(found.get(name))} there, {_short(wanted.get(name))} here)"
                for name in names[:3]
            ]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise _Refused(
                f"Expected `checkpoint` to name a file of this very fit, or none yet; got {str(self.path)!r}, which differs "
                f"in {', '.join(texts)}{more}. Repeat the call that was interrupted, or name another file, or delete this "
                "one to begin anew."
            )

    @contextmanager
    def _refusal(self) -> Iterator[None]:
        """Turn every fault of the file into one kind of error."""
        try:
            yield
        except _Refused:
            raise
        except UNREADABLE as error:
            raise ValueError(
                f"Expected `checkpoint` to name a checkpoint, or no file yet; got {str(self.path)!r}, which is not one or "
                f"is damaged ({_short(_reason(error))}). Name another file, or delete this one to begin anew."
            ) from error


class _Refused(ValueError):
    """A file that is sound and belongs to another fit."""


def _reason(error: BaseException) -> str:
    """Words of the system about an error, without the number and the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _short(value: Any) -> str:
    """A value that may be anything, in a few words."""
    return value[:80] if isinstance(value, str) else reprlib.repr(value)


def _pack(state: State) -> tuple[dict[str, object], dict[str, Any]]:
    """A state as what JSON can hold, and arrays."""
    walks = {"walk": state.walk, "kept": state.kept}
    facts: dict[str, object] = {key: getattr(state, key) for key in _STATE}
    tensors = {name: getattr(state, name) for name in _TENSORS}
    for name, walk in walks.items():
        facts[name] = walk and {key: getattr(walk, key) for key in _WALK}
        tensors |= {f"{name}.{key}": getattr(walk, key) for key in _PLACES} if walk else {}
    return facts, {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _unpack(archive: zipfile.ZipFile, facts: dict[str, Any], like: State) -> State:
    """The state in an archive; nothing in it is believed before it is checked."""
    tensors = _tensors(archive, _TENSORS, like)
    walks: dict[str, Walk] = {}
    for name in ("walk", "kept") if facts["kept"] is not None else ("walk",):
        places = _tensors(archive, _PLACES, like.walk, f"{name}.")
        walk = walks[name] = Walk(**_checked(facts[name], _WALK), **places)
        n_steps = len(walk.elbo)
        if not n_steps == len(walk.seconds) == len(walk.phase) > 0 or walk.halvings < 0:
            raise ValueError("records of different lengths")
    if facts["phase"] >= 0 and not facts["starts"]:
        raise ValueError("no start")
    if facts["phase"] < -1 or facts["step"] < 0:
        raise ValueError("no such phase")
    torch.Generator().set_state(tensors["random"])  # refuses what is no state of a generator
    plain = _checked({key: facts[key] for key in _STATE}, _STATE)
    return State(**plain, walk=walks["walk"], kept=walks.get("kept"), **tensors)


def _checked(value: Any, like: Any) -> Any:
    """The value, if it has the types of an example.

    Fixed keys, or any where the example has the key "".
    """
    sound = type(value) is type(like)
    if sound and isinstance(like, list):
        sound = all(_checked(item, like[0]) is item for item in value)
    elif sound and isinstance(like, dict):
        sound = "" in like or value.keys() == like.keys()
        sound = sound and all(
            _checked(item, like[key if key in like else ""]) is item for key, item in value.items()
        )
    if not sound:
        raise TypeError(f"{_short(value)} where something like {like!r} should be")
    return value


def _tensors(
    archive: zipfile.ZipFile, names: Iterable[str], like: State | Walk, prefix: str = ""
) -> dict[str, Any]:
    """Tensors of the archive by name, each like the one of an example."""
    return {name: _tensor(archive, prefix + name, getattr(like, name)) for name in names}


def _tensor(archive: zipfile.ZipFile, name: str, like: Tensor) -> Tensor:
    """An array of the archive with dtype, shape and device of an example."""
    tensor = torch.from_numpy(_array(archive, name, like.cpu().numpy().dtype, tuple(like.shape)))
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite")
    return tensor.to(like.device)


def _array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """An array that is stored as it is, with the one header that it may have.

    No header is believed, or even parsed.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{name} is compressed")
    content = archive.read(member)
    if shape is None:
        shape = (len(content.partition(b"\n")[2]),)
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    start = header.tell()
    if (
        content[:start] != header.getvalue()
        or len(content) - start != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError(f"{name} is not {dtype} {shape}")
    return np.frombuffer(content, dtype=dtype, offset=start).reshape(shape).copy()


def tell_interruption(where: str, checkpoint: Checkpoint | None) -> None:
    """Tell where Ctrl-C has stopped the fit, and how to go on."""
    if checkpoint is None:
        how = "With checkpoint=PATH the same call could go on from there."
    elif checkpoint.flush():
        how = f"The same call with checkpoint={str(checkpoint.path)!r} goes on from there."
    else:
        how = "No checkpoint was written."
    logger.warning("Interrupted after %s; the data are untouched. %s", where, how)
