"""The prelude's functions, evaluated by Julia in loops, against 50 digits: at most 4 units in the last place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from julia_process import WITHOUT_JULIA, julia_executable

from pynode.capture.exponential import exponential
from pynode.julia.activations import prelude

mpmath = pytest.importorskip("mpmath")

#: Names in the prelude, the function at 50 digits, and the range of arguments that is swept.
FUNCTIONS = {
    "tanh_": (mpmath.tanh, -25.0, 25.0),
    "exp_": (mpmath.exp, -80.0, 80.0),
    "expm1_": (mpmath.expm1, -40.0, 80.0),
    "sigmoid_": (lambda x: 1 / (1 + mpmath.exp(-x)), -80.0, 40.0),
    "erf_": (mpmath.erf, -7.0, 7.0),
    "erfc_": (mpmath.erfc, -7.0, 9.0),
}
SPECIAL = {
    "tanh_": {np.inf: 1.0, -np.inf: -1.0, 0.0: 0.0},
    "exp_": {np.inf: np.inf, -np.inf: 0.0, 0.0: 1.0},
    "expm1_": {np.inf: np.inf, -np.inf: -1.0, 0.0: 0.0},
    "sigmoid_": {np.inf: 1.0, -np.inf: 0.0, 0.0: 0.5},
    "erf_": {np.inf: 1.0, -np.inf: -1.0, 0.0: 0.0},
    "erfc_": {np.inf: 0.0, -np.inf: 2.0, 0.0: 1.0},
}
BOUND = 4.0
COUNT = 4000


def points(low: float, high: float, kind: type) -> np.ndarray:
    """Even over the range, and even in magnitude down to where every function is linear or constant."""
    rng = np.random.default_rng(0)
    small = np.exp(rng.uniform(np.log(1e-12), np.log(2.0), COUNT)) * rng.choice([-1.0, 1.0], COUNT)
    return np.concatenate([rng.uniform(low, high, COUNT), small]).astype(kind)


def evaluated(dtype: torch.dtype, tmp_path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arguments and Julia's values, ends of the range included."""
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    kind = np.float32 if dtype == torch.float32 else np.float64
    name = "Float32" if dtype == torch.float32 else "Float64"
    lines = [f"const T = {name}", *prelude([f"{f}(" for f in FUNCTIONS], dtype)]
    arguments = {}
    for function, (_, low, high) in FUNCTIONS.items():
        special = np.array([*SPECIAL[function], np.nan], dtype=kind)
        arguments[function] = np.concatenate([points(low, high, kind), special])
        arguments[function].tofile(tmp_path / f"{function}.in")
        lines += [
            f"function sweep_{function}(y, x)",
            f"    @inbounds @simd ivdep for i in eachindex(x); y[i] = {function}(x[i]); end",
            "end",
            f"let x = Vector{{T}}(undef, {len(arguments[function])}), y = similar(x)",
            f'    read!(raw"{tmp_path / f"{function}.in"}", x); sweep_{function}(y, x)',
            f'    write(raw"{tmp_path / f"{function}.out"}", y)',
            "end",
        ]
    script = tmp_path / "sweep.jl"
    script.write_text("\n".join(lines), encoding="utf-8")
    subprocess.run([executable, "--startup-file=no", str(script)], check=True, capture_output=True, text=True)
    return {f: (x, np.fromfile(tmp_path / f"{f}.out", dtype=kind)) for f, x in arguments.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_within_four_units_in_the_last_place(dtype: torch.dtype, tmp_path: Path) -> None:
    worst = {}
    with mpmath.workdps(50):
        for name, (x, y) in evaluated(dtype, tmp_path).items():
            exact, *_ = FUNCTIONS[name]
            special = len(SPECIAL[name]) + 1
            values = [exact(mpmath.mpf(float(v))) for v in x[:-special]]
            ulps = [
                abs(float((mpmath.mpf(float(b)) - a) / mpmath.mpf(float(np.spacing(abs(y.dtype.type(float(a))))))))
                for a, b in zip(values, y[:-special], strict=True)
            ]
            worst[name] = max(ulps)
            expected = [*SPECIAL[name].values(), np.nan]
            np.testing.assert_array_equal(y[-special:], np.array(expected, dtype=y.dtype))
    assert {name: found for name, found in worst.items() if found > BOUND} == {}


@pytest.mark.parametrize(("degree", "bound"), [(4, 2.0**-25), (10, 2.0**-54)])
def test_the_exponentials_polynomial(degree: int, bound: float) -> None:
    """``exp(r) - 1`` relative to itself over the reduced range, before any rounding: half the unit roundoff."""
    coefficients = [mpmath.mpf(c.numerator) / c.denominator for c in exponential(degree)]
    with mpmath.workdps(50):
        for k in range(-100, 101):
            r = mpmath.log(2) / 2 * k / 100
            if k:
                found = r + r**2 * mpmath.polyval(coefficients[::-1], r)
                assert abs(found / mpmath.expm1(r) - 1) < bound
