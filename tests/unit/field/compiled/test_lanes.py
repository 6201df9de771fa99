"""Arithmetic in lanes against NumPy, lane by lane."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
from numba import TypingError, njit
from numpy.typing import NDArray

from epivi.field.compiled.simd import (
    WIDTH,
    absolute,
    exponent,
    exponential,
    load,
    logarithm,
    power_of_two,
    select_less,
    spread,
    square_root,
    store,
)

Array = NDArray[np.float64]


def rows(values: Array) -> Array:
    """As many rows of WIDTH as hold the values, filled up with ones."""
    padded = np.ones(-(-len(values) // WIDTH) * WIDTH)
    padded[: len(values)] = values
    return padded.reshape(-1, WIDTH)


@njit
def functions(x: Array, out: Array) -> None:
    for i in range(x.shape[0]):
        value = load(x, i)
        store(out[0], i, exponential(value))
        store(out[1], i, logarithm(value))
        store(out[2], i, square_root(value))
        store(out[3], i, absolute(value))


@njit
def arithmetic(a: Array, b: Array, c: float, out: Array) -> None:
    for i in range(a.shape[0]):
        x, y = load(a, i), load(b, i)
        store(out[0], i, x + y)
        store(out[1], i, x - y)
        store(out[2], i, x / y)
        store(out[3], i, c - x)
        store(out[4], i, x * c)
        z = x
        z += y
        z *= 2
        z -= c
        z /= x
        store(out[5], i, z)
        store(out[6], i, select_less(x, y, x, y))
        store(out[7], i, select_less(x, c, 1.0, spread(c)))


def test_arithmetic() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 50, WIDTH))
    b[::7] = a[::7]  # not less
    out = np.empty((8, 50, WIDTH))
    arithmetic(a, b, 0.3, out)
    expected = [a + b, a - b, a / b, 0.3 - a, a * 0.3, ((a + b) * 2 - 0.3) / a, np.minimum(a, b)]
    np.testing.assert_allclose(out[:7], expected, rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(out[7], np.where(a < 0.3, 1.0, 0.3))


def test_exponential_and_logarithm_to_the_last_places() -> None:
    """Against 40 digits: within two units in the last place, at the ends of every binade and in both tails."""
    random = np.random.default_rng(2)
    exponents = np.concatenate([random.uniform(-700, 700, 300), random.normal(0, 1, 300), [0.0, -0.0, 700.0, -700.0]])
    numbers = np.concatenate(
        [10.0 ** random.uniform(-300, 300, 300), 1 + random.normal(0, 1e-3, 200), 2.0 ** np.arange(-8, 9), [0.5**0.5]]
    )
    for index, x, exact in ((0, exponents, mpmath.exp), (1, numbers, mpmath.log)):
        out = np.empty((4, *rows(x).shape))
        functions(rows(x), out)
        with mpmath.workdps(40):
            expected = [exact(mpmath.mpf(float(value))) for value in x]
            for found, true in zip(out[index].ravel(), expected, strict=False):
                assert abs(mpmath.mpf(float(found)) - true) <= 4.5e-16 * abs(true)


def test_at_the_ends_and_beyond() -> None:
    """Too large and too small exponents stop at the last that can be told apart; what has no value is not a number."""
    x = rows(np.array([np.nan, -1.0, 0.0, 1e4, -1e4, np.inf, 4.0]))
    out = np.empty((4, *x.shape))
    functions(x, out)
    np.testing.assert_allclose(
        out[0, 0, :7], [np.nan, np.exp(-1), 1, np.exp(700), np.exp(-700), np.exp(700), np.exp(4)], rtol=1e-15
    )
    assert np.isnan(out[1, 0, :3]).all()
    assert np.isnan(out[2, 0, :2]).all()
    assert out[2, 0, 6] == 2
    np.testing.assert_array_equal(out[3, 0, 1:5], [1, 0, 1e4, 1e4])


def test_other_arrays_are_refused() -> None:
    """Rows are read without a check, so that the type must be right: float64, two dimensions, in order."""

    @njit
    def first(x: Array, out: Array) -> None:
        store(out, 0, load(x, 0))

    out = np.empty((1, WIDTH))
    for wrong in (np.ones((1, WIDTH), dtype=np.float32), np.ones(WIDTH), np.asfortranarray(np.ones((2, WIDTH)))):
        with pytest.raises(TypingError):
            first(wrong, out)


@njit
def split(x: Array, out: Array) -> None:
    for i in range(x.shape[0]):
        power = exponent(load(x, i))
        store(out[0], i, power)
        store(out[1], i, power_of_two(power))


def test_exponents_and_powers_of_two() -> None:
    """Exact, over the range of normal numbers: x / 2^k lies between the roots of a half and of two."""
    x = rows(np.concatenate([10.0 ** np.linspace(-300, 300, 601), [1.0, np.sqrt(0.5), 1.9999, 2.0]]))
    out = np.empty((2, *x.shape))
    split(x, out)
    np.testing.assert_array_equal(out[1], np.ldexp(1.0, out[0].astype(int)))
    assert (x / out[1] >= np.sqrt(0.5) * (1 - 1e-15)).all()
    assert (x / out[1] <= np.sqrt(2.0) * (1 + 1e-15)).all()


# --- the cache -------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from epivi.field.compiled.simd import entry_point

def double(x):
    return {factor} * x

compiled = entry_point(double, [Path(__file__)])
print(compiled(3), sum(compiled.stats.cache_hits.values()))
"""


def test_machine_code_of_another_version_is_not_read(tmp_path: Path) -> None:
    """Its index may name types that are gone: here it is no index at all. The present version's own is read."""

    def printed(factor: int) -> str:
        (tmp_path / "kernel.py").write_text(PROGRAM.format(factor=factor))
        run = subprocess.run([sys.executable, tmp_path / "kernel.py"], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    assert [printed(2), printed(2)] == ["6 0", "6 1"]
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    index.write_bytes(index.read_bytes()[:100])
    assert [printed(5), printed(5)] == ["15 0", "15 1"]
