"""Vectors of floats in code that is being built, and logarithm and exponential of them."""

from __future__ import annotations

import math

from llvmlite import ir

__all__ = ["EIGHT", "FLOAT", "INT32", "INT64", "LOG2", "Lanes", "log", "one_minus_exp", "added"]

EIGHT = 8
LOG2 = math.log(2)
ROUNDING = 1.5 * 2**23  # a float of this size has no binary places left
FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _operator(name, *, turned=False):
    """Method: an instruction for two vectors, or vector and number; may fuse products and sums."""

    def build(self, other):
        operands = self.value, other.value if isinstance(other, Lanes) else self.constant(other)
        return Lanes(
            self.builder,
            getattr(self.builder, name)(*operands[:: -1 if turned else 1], flags=("contract",)),
        )

    return build


class Lanes:
    """A vector of floats in code that is being built; arithmetic with it builds instructions."""

    def __init__(self, builder, value):
        self.builder, self.value, self.n = builder, value, value.type.count

    __add__, __mul__ = _operator("fadd"), _operator("fmul")
    __sub__, __rsub__ = _operator("fsub"), _operator("fsub", turned=True)
    __truediv__, __rtruediv__ = _operator("fdiv"), _operator("fdiv", turned=True)

    def constant(self, number):
        """A float in every lane."""
        return ir.Constant(self.value.type, [number] * self.n)

    def integer(self, number):
        """An integer in every lane."""
        return ir.Constant(ir.VectorType(INT32, self.n), [number] * self.n)

    def bits(self):
        """The same bits as integers."""
        return self.builder.bitcast(self.value, ir.VectorType(INT32, self.n))

    def from_bits(self, bits):
        """The same bits as floats."""
        return Lanes(self.builder, self.builder.bitcast(bits, self.value.type))

    def where(self, condition, otherwise):
        """The vector where a condition holds, a constant elsewhere."""
        return Lanes(
            self.builder, self.builder.select(condition, self.value, self.constant(otherwise))
        )

    def pick(self, lanes, other=None):
        """Lanes of this vector and, counted on from its end, of another."""
        mask = ir.Constant(ir.VectorType(INT32, len(lanes)), lanes)
        return Lanes(
            self.builder, self.builder.shuffle_vector(self.value, (other or self).value, mask)
        )


def _polynomial(x, coefficients):
    """By Horner's rule, lowest power first."""
    result = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        result = result * x + coefficient
    return result


def log(x):
    """Log of normal ``2^n m``, m in .7 to 1.4: ``n log 2 + 2 artanh s, s = (m - 1)/(m + 1)``."""
    b = x.builder
    n = b.ashr(b.sub(x.bits(), x.integer(0x3F3504F3)), x.integer(23))  # the bits of sqrt(1/2)
    m = x.from_bits(b.sub(x.bits(), b.shl(n, x.integer(23))))
    s = (m - 1.0) / (m + 1.0)
    return (
        s * _polynomial(s * s, [2 / k for k in (1, 3, 5, 7, 9)])
        + Lanes(b, b.sitofp(n, x.value.type)) * LOG2
    )


def one_minus_exp(x):
    """``1 - exp(-x)``, x >= 0, to rounding: ``1 - 2^n - 2^n expm1(t)``, ``-x = n log 2 + t``."""
    b = x.builder
    x = x.where(b.fcmp_unordered("<", x.value, x.constant(80.0)), 80.0)
    n = x * (-1 / LOG2) + ROUNDING
    # the bits of ROUNDING are shifted out
    power = x.from_bits(b.shl(b.add(n.bits(), x.integer(127)), x.integer(23)))
    t = 0.0 - x - (n - ROUNDING) * LOG2
    return (1.0 - power) - power * t * _polynomial(t, [1 / math.factorial(k) for k in range(1, 8)])


def added(parts):
    """The transposing sum: lane q of the result sums over the lanes of vector q, eight by eight."""
    for low in (
        [0, 2, 8, 10, 4, 6, 12, 14],
        [0, 2, 8, 10, 4, 6, 12, 14],
        [0, 1, 2, 3, 8, 9, 10, 11],
    ):
        high = [lane + (4 if low[1] == 1 else 1) for lane in low]
        parts = [
            a.pick(low, b) + a.pick(high, b) for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]
