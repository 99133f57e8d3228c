"""Sums over nonzeros of counts on the CPU: vector instructions spelled out for numba's compiler.

Every nonzero (i, j) needs a dot product ``r = G_i . W_j``, the slope ``c = df/dr`` of its
likelihood term, and the updates ``dG_i += c W_j`` and ``dW_j += c G_i``. One pass over the rows
does all of it: G_i and dG_i stay at hand, rows of W and dW are gathered and scattered. So the
matrix is needed by rows only, and each thread scatters into a dW of its own.

The trick: a compiled loop over K factors stays scalar. So the inner step is spelled in LLVM's
vector types, for eight nonzeros of a row at once (:func:`_eight`):

1. eight products ``G_i * W_j`` in vectors over the factors, W padded by zeros to eights;
2. a transposing sum: one vector holds the eight dot products, lanes now stand for nonzeros;
3. value and slope of the link on eight nonzeros at once, logarithm and exponential by polynomials;
4. each slope is spread over a vector again for the two updates.

Where a row ends, lanes that are left over repeat its last nonzero with slope zero. The number of
vectors and what is wanted are told by the types of arguments (the length of a tuple, an array or
None), so that each case has compiled code of its own, which numba keeps on disk.

Rows of W and dW are best gathered from the second-level cache, which those of a wide matrix do not
fit into: then all rows are walked once for each stripe of columns. Nothing here may assume finite
numbers: what is not finite in G or W must reach the value, where the optimiser looks for it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpnsf.core.counts import lanes
from gpnsf.core.counts.compiled import compiled
from gpnsf.core.counts.lanes import (
    EIGHT,
    FLOAT,
    INT32,
    INT64,
    LOG2,
    Lanes,
    added,
    log,
    one_minus_exp,
)
from gpnsf.core.types import TINY

__all__ = ["EIGHT", "cut", "information", "nonzeros", "saturation", "without"]

_compiled = compiled(fastmath=("contract",), parts=(lanes.__file__,))


class _Code:
    """Code that both inner steps share: vectors in memory, and eight nonzeros of a row."""

    def __init__(self, context, builder, signature, args, names):
        self.builder, self.args = builder, dict(zip(names.split(), args, strict=True))
        for name, kind in zip(names.split(), signature.args, strict=True):
            if isinstance(kind, types.Array):
                self.args[name] = context.make_array(kind)(context, builder, self.args[name]).data
            elif isinstance(kind, types.NoneType):
                self.args[name] = None

    def pointer(self, array, offset, lanes):
        """Where a vector of an array lies."""
        place = self.builder.gep(self.args[array], [offset])
        return self.builder.bitcast(place, ir.VectorType(FLOAT, lanes).as_pointer())

    def load(self, array, offset, lanes):
        """A vector of an array."""
        return Lanes(self.builder, self.builder.load(self.pointer(array, offset, lanes), align=4))

    def vectors(self, pieces, array, offset=INT64(0)):
        """A row of an array in as many vectors as there are pieces."""
        return [self.load(array, self.builder.add(offset, INT64(start)), n) for start, n in pieces]

    def store(self, lanes, array, offset):
        """Put a vector into an array."""
        self.builder.store(lanes.value, self.pointer(array, offset, lanes.n), align=4)

    def columns(self):
        """Columns of eight nonzeros from ``begin``; after ``end`` the last one again."""
        b, last = self.builder, self.builder.sub(self.args["end"], INT64(1))
        positions = [b.add(self.args["begin"], INT64(lane)) for lane in range(EIGHT)]
        positions = [
            b.select(b.icmp_signed("<", position, last), position, last) for position in positions
        ]
        return [
            b.sext(b.load(b.gep(self.args["indices"], [position])), INT64) for position in positions
        ]

    def inside(self):
        """Which of the eight lie before ``end``."""
        b, eight = self.builder, ir.VectorType(INT32, EIGHT)
        left = b.trunc(b.sub(self.args["end"], self.args["begin"]), INT32)
        left = b.insert_element(ir.Constant(eight, ir.Undefined), left, INT32(0))
        left = b.shuffle_vector(left, left, ir.Constant(eight, [0] * EIGHT))
        return b.icmp_signed("<", ir.Constant(eight, list(range(EIGHT))), left)

    def inner(self, array):
        """Values of an array for the eight; zero after ``end``, from where nothing is read."""
        pointer, inside = self.pointer(array, self.args["begin"], EIGHT), self.inside()
        zero = ir.Constant(pointer.type.pointee, [0.0] * EIGHT)
        arguments = pointer, INT32(4), inside, zero  # aligned to four bytes
        kind = ir.FunctionType(zero.type, [argument.type for argument in arguments])
        load = cgutils.get_or_insert_function(
            self.builder.module, kind, "llvm.masked.load.v8f32.p0"
        )
        return Lanes(self.builder, self.builder.call(load, arguments))


@intrinsic
def _eight(typing, indices, values, begin, end, a, W, d, dW, rates, chunks):  # argument types
    """Value of eight nonzeros of one row; ``a`` is the row of G, padded, and ``d`` that of dG.

    ``values`` None: the likelihood only asks whether there is a count. ``d`` or ``dW`` None: not
    wanted; if both, the value is. With ``rates`` [8] not None these are all that is wanted.
    """
    width = EIGHT * len(chunks)
    pieces = _pieces(width)

    def build(context, builder, signature, args):
        code = _Code(
            context, builder, signature, args, "indices values begin end a W d dW rates chunks"
        )
        columns = [builder.mul(column, INT64(width)) for column in code.columns()]
        vectors = partial(code.vectors, pieces)
        row = vectors("a")
        r = added([_dot(row, vectors("W", column)) for column in columns])
        if code.args["rates"] is not None:
            code.store(r, "rates", INT64(0))
            return FLOAT(0.0)
        inside = code.inside()
        r = (r + TINY).where(inside, 1.0)
        if code.args["values"] is None:
            slope = 1.0 / one_minus_exp(r)
            value, slope = (r - log(slope)).where(inside, 0.0), slope.where(inside, 0.0)
        else:
            y = code.inner("values")
            value, slope = y * log(r), y / r
        slopes = [{n: slope.pick([lane] * n) for _, n in pieces} for lane in range(EIGHT)]
        if code.args["d"] is not None:
            sums = vectors("d")
            for c, column in zip(slopes, columns, strict=True):
                sums = [
                    total + c[w.n] * w for total, w in zip(sums, vectors("W", column), strict=True)
                ]
            for (start, _), total in zip(pieces, sums, strict=True):
                code.store(total, "d", INT64(start))
        if code.args["dW"] is not None:
            for c, column in zip(slopes, columns, strict=True):
                for (start, _), x, before in zip(pieces, row, vectors("dW", column), strict=True):
                    code.store(before + c[x.n] * x, "dW", builder.add(column, INT64(start)))
        if (code.args["d"] is None) != (code.args["dW"] is None):
            return FLOAT(0.0)  # nobody asks for the value of half a pass
        value = value + r * 0.0  # not a number where r is not finite, which a logarithm hides
        for shift in (4, 2, 1):
            value = value + value.pick([(lane + shift) % EIGHT for lane in range(EIGHT)])
        return builder.extract_element(value.value, INT32(0))

    return types.float32(indices, values, begin, end, a, W, d, dW, rates, chunks), build


def _dot(a, b):
    """Eight lanes whose sum is a dot product; vectors of sixteen come first."""
    total, *others = (x * y for x, y in zip(a, b, strict=True))
    for other in others:
        total = (total if total.n == other.n else _folded(total)) + other
    return total if total.n == EIGHT else _folded(total)


def _folded(x):
    """The sum of the two halves of sixteen lanes."""
    return x.pick(list(range(8))) + x.pick(list(range(8, 16)))


@intrinsic
def _without(typing, indices, values, begin, end, a, c, W, sums, chunks):
    """Add values of eight nonzeros to ``sums``, by factor k whose part changes by ``c_k W_jk``."""
    width = EIGHT * len(chunks)
    pieces = _pieces(width)

    def build(context, builder, signature, args):
        code = _Code(
            context, builder, signature, args, "indices values begin end a c W sums chunks"
        )
        columns = [builder.mul(column, INT64(width)) for column in code.columns()]
        vectors = partial(code.vectors, pieces)
        row, changes, totals = vectors("a"), vectors("c"), vectors("sums")
        r = added([_dot(row, vectors("W", column)) for column in columns])
        one = ir.Constant(r.value.type, [1.0] * EIGHT)
        y = (
            Lanes(builder, one).where(code.inside(), 0.0)
            if code.args["values"] is None
            else code.inner("values")
        )
        for lane, column in enumerate(columns):
            for piece, w in enumerate(vectors("W", column)):
                x = r.pick([lane] * w.n) + changes[piece] * w
                x = x.where(builder.fcmp_unordered(">", x.value, x.constant(TINY)), TINY)
                value = log(x) if code.args["values"] is not None else x + log(one_minus_exp(x))
                totals[piece] = totals[piece] + y.pick([lane] * w.n) * (value + x * 0.0)
        for (start, _), total in zip(pieces, totals, strict=True):
            code.store(total, "sums", INT64(start))
        return context.get_dummy_value()

    return types.void(indices, values, begin, end, a, c, W, sums, chunks), build


def _pieces(width):
    """Where vectors begin and how long they are: sixteens, and an eight where that remains."""
    return [(start, min(16, width - start)) for start in range(0, width, 16)]


@intrinsic
def _panel(typing, indices, weights, begin, end, W, width, p, q, block):
    """Add ``sum c w_p w_q^T`` of eight nonzeros to an 8 x 8 panel: rows from p, columns from q."""

    def build(context, builder, signature, args):
        code = _Code(
            context, builder, signature, args, "indices weights begin end W width p q block"
        )
        width, p, q = (code.args[name] for name in ("width", "p", "q"))
        places = [
            builder.add(builder.mul(builder.add(p, INT64(k)), width), q) for k in range(EIGHT)
        ]
        sums = [code.load("block", place, EIGHT) for place in places]
        weight = code.inner("weights")
        for lane, column in enumerate(code.columns()):
            start = builder.mul(column, width)
            left = code.load("W", builder.add(start, p), EIGHT)
            right = code.load("W", builder.add(start, q), EIGHT) * weight.pick([lane] * EIGHT)
            sums = [total + left.pick([k] * EIGHT) * right for k, total in enumerate(sums)]
        for place, total in zip(places, sums, strict=True):
            code.store(total, "block", place)
        return context.get_dummy_value()

    return types.void(indices, weights, begin, end, W, width, p, q, block), build


@_compiled
def nonzeros(first, last, starts, indices, values, G, W, dG, d, dW, rates, r, chunks):
    """Value over rows, added to dG, dW; with rates [nnz] these alone are wanted; d, r: buffers."""
    n_factors = G.shape[1]
    a = np.zeros(W.shape[1], np.float32)
    total = 0.0
    for stripe in range(starts.shape[0] - 1):
        for i in range(first, last):
            begin, end = starts[stripe, i], starts[stripe + 1, i]
            for k in range(n_factors):
                a[k] = G[i, k]
            for k in range(begin, end, EIGHT):
                total += _eight(indices, values, k, end, a, W, d, dW, r, chunks)
                if rates is not None:
                    for q in range(k, min(k + EIGHT, end)):
                        rates[q] = r[q - k]
            if dG is not None:
                for k in range(n_factors):
                    dG[i, k] += d[k]
                    d[k] = 0
    return total


@_compiled
def without(first, last, starts, indices, values, G, changes, W, sums, chunks):
    """Add to ``sums`` [width] the values over rows with ``changes`` [n, K] to a column of G."""
    n_factors, width = G.shape[1], W.shape[1]
    a = np.zeros(width, np.float32)
    c = np.zeros(width, np.float32)
    row = np.zeros(width, np.float32)
    for stripe in range(starts.shape[0] - 1):
        for i in range(first, last):
            begin, end = starts[stripe, i], starts[stripe + 1, i]
            for k in range(n_factors):
                a[k] = G[i, k]
                c[k] = changes[i, k]
            for k in range(begin, end, EIGHT):
                _without(indices, values, k, end, a, c, W, row, chunks)
            for k in range(width):
                sums[k] += row[k]
                row[k] = 0


@_compiled
def information(first, last, starts, indices, weights, W, out):
    """Add ``sum_j c_ij w_j w_j^T`` to ``out`` [n, K, K] over a range of rows."""
    width, n_factors = W.shape[1], out.shape[1]
    block = np.zeros((width, width), np.float32)
    for stripe in range(starts.shape[0] - 1):
        for i in range(first, last):
            begin, end = starts[stripe, i], starts[stripe + 1, i]
            for k in range(begin, end, EIGHT):
                for p in range(0, width, EIGHT):
                    for q in range(p, width, EIGHT):
                        _panel(indices, weights, k, end, W, width, p, q, block)
            for k in range(n_factors):
                for l in range(k):
                    out[i, k, l] += block[l, k]
                for l in range(k, n_factors):
                    out[i, k, l] += block[k, l]
            block[:] = 0


@_compiled
def cut(pointers, indices, edges, starts):
    """Find where in each row the inner stripes begin; indices are sorted."""
    for i in range(len(pointers) - 1):
        position = pointers[i]
        for stripe in range(len(edges)):
            while position < pointers[i + 1] and indices[position] < edges[stripe]:
                position += 1
            starts[stripe + 1, i] = position


@_compiled
def saturation(ratio, logs, shares):
    """Replace ``x`` [n, P] by ``1 / (1 + x)``; write row sums of ``log(1 + x)``, ``x / (1 + x)``.

    The sum of logarithms is that of a product, whose mantissa and exponent are kept apart.
    """
    n, n_features = ratio.shape
    mantissa, exponent = np.ones(n_features, np.float32), np.zeros(n_features, np.int32)
    bits = mantissa.view(np.int32)
    shares[:] = 0
    for i in range(n):
        for j in range(n_features):
            weight = np.float32(1) / (np.float32(1) + ratio[i, j])
            mantissa[j] *= np.float32(1) + ratio[i, j]
            shares[j] += (
                ratio[i, j] * weight
            )  # not a number where the ratio is not finite, and then nor is the sum of logarithms
            ratio[i, j] = weight
        for j in range(n_features):
            exponent[j] += (bits[j] >> 23) - 127
            bits[j] = (bits[j] & 0x7FFFFF) | 0x3F800000
    for j in range(n_features):
        logs[j] = np.log(mantissa[j]) + exponent[j] * LOG2 + np.float32(0) * shares[j]
