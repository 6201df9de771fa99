"""A vector of WIDTH doubles as a number in compiled code: one instruction works on as many loci or nodes at once.

Numba keeps no vectors in variables of its own accord, and its loop vectorizer gives up where arrays might overlap. Here
a value of type `lanes` is one LLVM vector, which every processor is given in the registers that it has. Arrays of lanes
are float64 [rows, WIDTH]. Arithmetic mixes with plain floats; `load`, `store` and `select_less` do the rest.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 32  # best of 8, 16 and 32 with AVX2 and with AVX-512: few short inner loops, and all nodes of a locus at once

Lanes = Any  # in annotations of compiled functions

_DOUBLES = ir.VectorType(ir.DoubleType(), WIDTH)
_INTEGERS = ir.VectorType(ir.IntType(64), WIDTH)

# Without wrappers for calls from Python, a function of the inside compiles in two thirds of the time. It is cached with
# the entry point that calls it, and not by itself: Numba would not see that a function of another file has changed.
compiled = njit(  # type: ignore[call-overload]
    nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)


def entry_point(function: Callable[..., Any], sources: Iterable[Path]) -> Any:
    """Compiled code that Python calls. The machine code is kept in files whose name changes with that of the sources:
    Numba's own key looks at one file only, and what it kept for another version of epivi may name types that are gone,
    so that even its index cannot be read."""
    version = zlib.crc32(b"".join(file.read_bytes() for file in sources))
    function.__qualname__ = f"{function.__name__}_{version:08x}"
    return njit(cache=True, nogil=True, error_model="numpy")(function)


_instruction: Any = intrinsic  # its type would count the typing context among the arguments of a call


class LanesType(types.Type):
    """Numba's type of a vector of WIDTH doubles."""

    def __init__(self) -> None:
        super().__init__(name=f"lanes{WIDTH}")


lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _DOUBLES)


def _row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    start = builder.mul(builder.sext(row, ir.IntType(64)) if row.type.width < 64 else row, _integer(WIDTH))
    return builder.bitcast(builder.gep(data, [start]), _DOUBLES.as_pointer())


def _integer(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_DOUBLES, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(first, undefined, mask)


def _lanes_of(*arguments: Any) -> Any:
    """Signature of a function of lanes and floats whose result is lanes."""
    return lanes(*(x if isinstance(x, LanesType) else types.float64 for x in arguments))


def _as_lanes(builder: Any, signature: Any, arguments: Any) -> list[Any]:
    pairs = zip(arguments, signature.args, strict=True)
    return [x if isinstance(kind, LanesType) else _splat(builder, x) for x, kind in pairs]


def _is_rows(array: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 2 and array.layout == "C" and array.dtype == types.float64


@_instruction
def load(typing_context: Any, array: Any, row: Any) -> Any:
    """Row `row` of a float64 array [rows, WIDTH]; out of range is not checked."""
    if not (_is_rows(array) and isinstance(row, types.Integer)):
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_row_pointer(context, builder, signature.args[0], *arguments), align=8)

    return lanes(array, row), code


@_instruction
def store(typing_context: Any, array: Any, row: Any, value: Any) -> Any:
    """Set row `row` of a float64 array [rows, WIDTH]; out of range is not checked."""
    if not (_is_rows(array) and isinstance(row, types.Integer) and isinstance(value, LanesType)):
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _row_pointer(context, builder, signature.args[0], *arguments[:2]), align=8)
        return context.get_dummy_value()

    return types.void(array, row, value), code


@_instruction
def spread(typing_context: Any, value: Any) -> Any:
    """The same float in every lane."""
    if not isinstance(value, types.Float):
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return lanes(types.float64), code


@_instruction
def select_less(typing_context: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """Lane by lane: `yes` where a < b, else `no`, also where either is not a number. Floats are spread."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, yes, no = _as_lanes(builder, signature, arguments)
        return builder.select(builder.fcmp_ordered("<", a, b), yes, no)

    return _lanes_of(a, b, yes, no), code


@_instruction
def square_root(typing_context: Any, x: Any) -> Any:
    """Not a number below zero."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"llvm.sqrt.v{WIDTH}f64"
        function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(_DOUBLES, [_DOUBLES]))
        return builder.call(function, arguments)

    return lanes(lanes), code


@_instruction
def _times_power_of_two(typing_context: Any, x: Any, shifted: Any) -> Any:
    """x 2^k, where `shifted` is k + 1.5 x 2^52, whose lowest bits are the integer k."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        power = builder.shl(builder.bitcast(arguments[1], _INTEGERS), ir.Constant(_INTEGERS, [52] * WIDTH))
        return builder.bitcast(builder.add(builder.bitcast(arguments[0], _INTEGERS), power), _DOUBLES)

    return lanes(lanes, lanes), code


@_instruction
def exponent(typing_context: Any, x: Any) -> Any:
    """k of x = 2^k f, f in [sqrt(1/2), sqrt(2)), for positive normal x."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _INTEGERS)
        offset = ir.Constant(_INTEGERS, [0x3FE6A09E667F3BCD] * WIDTH)  # the bits of sqrt(1/2)
        power = builder.ashr(builder.sub(bits, offset), ir.Constant(_INTEGERS, [52] * WIDTH))
        return builder.sitofp(power, _DOUBLES)

    return lanes(lanes), code


def _arithmetic(symbols: tuple[Any, ...], instruction: str) -> None:
    """Define an operator, and its in-place form, on lanes with lanes or floats."""

    @_instruction
    def combine(typing_context: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, b = _as_lanes(builder, signature, arguments)
            # A product may be fused with the sum that it goes into, where the processor can do that.
            return getattr(builder, instruction)(a, b, flags=("contract",))

        return _lanes_of(a, b), code

    for symbol in symbols:

        @overload(symbol)
        def operation(a, b):  # type: ignore[no-untyped-def]  # Numba compares signatures, annotations included
            if LanesType in (type(a), type(b)) and all(isinstance(x, (LanesType, types.Number)) for x in (a, b)):
                return lambda a, b: combine(a, b)
            return None


_arithmetic((operator.add, operator.iadd), "fadd")
_arithmetic((operator.sub, operator.isub), "fsub")
_arithmetic((operator.mul, operator.imul), "fmul")
_arithmetic((operator.truediv, operator.itruediv), "fdiv")

_ROUND = 1.5 * 2.0**52  # added and taken away, it rounds to the nearest integer
_LOG2_HIGH = 6.93147180369123816490e-01  # log 2 in two parts, the first with trailing zeros: k times it is exact
_LOG2_LOW = 1.90821492927058770002e-10
_PER_LOG2 = 1.4426950408889634


@compiled
def power_of_two(k: Lanes) -> Lanes:
    """2^k for integers k within [-1022, 1023]."""
    return _times_power_of_two(spread(1.0), k + _ROUND)


@compiled
def exponential(x: Lanes) -> Lanes:
    """exp(x) for x clipped to [-700, 700], to two units in the last place: x = k log 2 + r, Taylor series in r."""
    x = select_less(x, -700.0, -700.0, x)
    x = select_less(700.0, x, 700.0, x)
    shifted = x * _PER_LOG2 + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LOG2_HIGH) - k * _LOG2_LOW
    series = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0
    series = series * r + 1.0 / 39916800.0
    series = series * r + 1.0 / 3628800.0
    series = series * r + 1.0 / 362880.0
    series = series * r + 1.0 / 40320.0
    series = series * r + 1.0 / 5040.0
    series = series * r + 1.0 / 720.0
    series = series * r + 1.0 / 120.0
    series = series * r + 1.0 / 24.0
    series = series * r + 1.0 / 6.0
    series = series * r + 0.5
    return _times_power_of_two((series * r + 1.0) * r + 1.0, shifted)


@compiled
def logarithm(x: Lanes) -> Lanes:
    """Natural logarithm of positive normal numbers, else not a number: x = 2^k f, and 2 artanh((f - 1) / (f + 1))."""
    k = exponent(x)
    f = _times_power_of_two(x, _ROUND - k)
    s = (f - 1.0) / (f + 1.0)
    z = s * s
    series = z * (2.0 / 23.0) + 2.0 / 21.0
    series = series * z + 2.0 / 19.0
    series = series * z + 2.0 / 17.0
    series = series * z + 2.0 / 15.0
    series = series * z + 2.0 / 13.0
    series = series * z + 2.0 / 11.0
    series = series * z + 2.0 / 9.0
    series = series * z + 2.0 / 7.0
    series = series * z + 2.0 / 5.0
    series = series * z + 2.0 / 3.0
    value = k * _LOG2_HIGH + (k * _LOG2_LOW + (series * z * s + 2.0 * s))
    return select_less(0.0, x, value, np.nan)


@compiled
def absolute(x: Lanes) -> Lanes:
    return select_less(x, 0.0, 0.0 - x, x)
