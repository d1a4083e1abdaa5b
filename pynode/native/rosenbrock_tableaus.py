"""Rosenbrock methods as data.

In the variables ``U_i = h sum_j Gamma_ij k_j`` of Hairer and Wanner (1996, section IV.7) a step of ``M y' = f(t, y)``
with ``J = df/dy`` and ``T = df/dt`` at its start solves

    (M - h gamma J) U_i = h gamma [f(t + c_i h, y + sum_j a_ij U_j) + h d_i T] + gamma M sum_j C_ij U_j

for one stage after the other and ends in ``y + sum_i b_i U_i``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RosenbrockTableau:
    """One method.

    Attributes
    ----------
    order, error_order : int
        Of the method, and the power of ``h`` in its error estimate.
    gamma : float
    a, coupling : tuple of tuple of float
        Rows of ``a`` and of ``C``, strictly lower triangular.
    c, d, b : tuple of float
    b_error : tuple of float
        Weights of the error estimate.
    dense_b : tuple of tuple of float
        Dense output: coefficients of theta, theta^2, ... of the weight of every stage.
    dense_order : int
    fsal : bool
        The last stage evaluates ``f`` at the end of the step.
    """

    order: int
    error_order: int
    gamma: float
    a: tuple[tuple[float, ...], ...]
    coupling: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    d: tuple[float, ...]
    b: tuple[float, ...]
    b_error: tuple[float, ...]
    dense_b: tuple[tuple[float, ...], ...]
    dense_order: int
    fsal: bool = False


def _rosenbrock23() -> RosenbrockTableau:
    """ode23s. Its k_i are here U_1 = h g k_1, U_2 = h g (k_2 - k_1) and, with e = 6 + sqrt(2),
    U_3 = h g (k_3 - e (k_2 - k_1) - 2 k_1), which rids the third stage of the evaluations at earlier ones."""
    g = 1.0 / (2.0 + math.sqrt(2.0))
    e = 6.0 + math.sqrt(2.0)
    return RosenbrockTableau(
        order=2,
        error_order=3,
        gamma=g,
        a=((), (0.5 / g,), (1.0 / g, 1.0 / g)),
        coupling=((), (-1.0 / g,), (-2.0 / g, -e / g)),
        c=(0.0, 0.5, 1.0),
        d=(g, 0.0, -g),
        b=(1.0 / g, 1.0 / g, 0.0),
        b_error=tuple(x / (6.0 * g) for x in (1.0, e - 2.0, 1.0)),
        dense_b=((1.0 / g, 0.0), (-2.0 / (1.0 - 2.0 * g), 1.0 / (g * (1.0 - 2.0 * g))), (0.0, 0.0)),
        dense_order=2,
        fsal=True,
    )


def _stiffly_accurate(
    order: int,
    gamma: float,
    a: tuple[tuple[float, ...], ...],
    coupling: tuple[tuple[float, ...], ...],
    c: tuple[float, ...],
    d: tuple[float, ...],
    dense: tuple[tuple[float, ...], ...],
) -> RosenbrockTableau:
    """A Rodas method: the last stage is the error estimate. Its dense output is ``(1 - x) y + x (y1 + (1 - x) (K_1 +
    x (K_2 + x K_3)))``, where ``dense`` are the weights of the stages in the ``K``."""
    b = (*a[-1], 1.0)
    rows = [(0.0,) * len(b), *dense, (0.0,) * len(b)]
    steps = [[high[i] - low[i] for i in range(len(b))] for low, high in itertools.pairwise(rows)]
    # x b + (x - x^2) (K_1 + x K_2 + x^2 K_3), by powers of x; each K enters one power up, and the next one negative.
    steps[0] = [x + y for x, y in zip(steps[0], b, strict=True)]
    return RosenbrockTableau(
        order=order,
        error_order=order,
        gamma=gamma,
        a=a,
        coupling=coupling,
        c=c,
        d=d,
        b=b,
        b_error=(*(0.0,) * (len(b) - 1), 1.0),
        dense_b=tuple(zip(*steps, strict=True)),
        dense_order=order - 1,
    )


# fmt: off
_RODAS4 = _stiffly_accurate(
    order=4,
    gamma=0.25,
    a=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895, 1.0),
    ),
    coupling=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.7089089320616),
        (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054),
    ),
    c=(0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
    d=(0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
    dense=(
        (10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823, 1.025137723295662, 0.0),
        (-0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386, -6.594389125716872, 0.0),
    ),
)

_RODAS5P = _stiffly_accurate(
    order=5,
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
        (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946, 1.0),
        (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946,
         1.0, 1.0),
    ),
    coupling=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623,
         -28.087943162872662),
        (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002,
         -54.66780262877968, -9.48861652309627),
    ),
    c=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    d=(0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069,
       0.0, 0.0, 0.0),
    dense=(
        (25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204, 0.524948541321073,
         1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        (-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796, 20.176138334709044,
         15.98066361424651, -6.789040303419874, -6.710236069923372),
        (11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643, -52.072871366152654,
         -59.78993625266729, -0.15582684282751913, 4.883087185713722),
    ),
)
# fmt: on

#: Shampine and Reichelt (1997); Hairer and Wanner (1996); Steinebach (2023).
ROSENBROCK: dict[str, RosenbrockTableau] = {"Rosenbrock23": _rosenbrock23(), "Rodas4": _RODAS4, "Rodas5P": _RODAS5P}
