"""What the soak does in turns: one training iteration each, of models that stay and of models made anew."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import pynode

#: An iteration: it draws what varies (sizes, seeds) from the generator.
Lap = Callable[[random.Random], None]


class Rate(nn.Module):
    """A small network as the field of a state (..., 2), or of ``{"x": (..., 2), "v": (..., 2)}``."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        for p in self.net.parameters():
            p.data.mul_(0.5)

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        if isinstance(y, dict):
            return {"x": y["v"], "v": self.net(y["x"]) - 0.1 * y["v"]}
        found: Tensor = self.net(y)
        return found


class Looking(Rate):
    """One that asks for values, which no capture can give."""

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        return super().forward(t, y) if float(t) >= 0.0 else -y


class Faulty(Rate):
    """One that raises in the middle of a solve."""

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        if float(t) > 0.5:
            raise ArithmeticError("a fault of the soak")
        return super().forward(t, y)


class Trainer:
    """A model and its optimizer; a call is one iteration."""

    def __init__(self, rate: nn.Module, rows: tuple[int, ...] = (4,), tree: bool = False, **options: Any) -> None:
        self.rate, self.rows, self.tree, self.options = rate, rows, tree, options
        self.optimizer = torch.optim.Adam(rate.parameters(), lr=1e-3)

    def __call__(self, draw: random.Random) -> None:
        rows = draw.choice(self.rows)
        y0: Any = torch.randn(rows, 2)
        if self.tree:
            y0 = {"x": y0, "v": torch.zeros(rows, 2)}
        sol = pynode.solve(self.rate, y0, [0.0, 0.4, 1.0], rtol=1e-3, atol=1e-4, **self.options)
        end = sol.ys["x"][-1] if self.tree else sol.ys[-1]
        loss = end.square().mean()
        if getattr(self.options.get("saveat"), "dense", False):
            loss = loss + sol(0.7).square().mean()
        if sol.running_cost is not None:
            loss = loss + 0.1 * sol.running_cost
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def fresh(make: Callable[[], Trainer]) -> Lap:
    """An iteration of a model that lives for it alone."""
    return lambda draw: make()(draw)


def failing(lap: Lap, error: type[BaseException]) -> Lap:
    """An iteration that has to raise."""

    def run(draw: random.Random) -> None:
        with contextlib.suppress(error):
            lap(draw)
            raise AssertionError(f"this lap has to raise {error.__name__}")

    return run


def _blow_up(**options: Any) -> Lap:
    def run(draw: random.Random) -> None:
        y0 = torch.full((2,), 1.0 + draw.random(), requires_grad=True)
        pynode.solve(_squared, y0, [0.0, 2.0], rtol=1e-3, atol=1e-4, **options)

    return run


def _squared(t: Tensor, y: Tensor) -> Tensor:
    return y * y


def _wrong(draw: random.Random) -> None:
    pynode.solve(lambda t, y: y.sum(), torch.randn(3), [0.0, 1.0])


def _looked_at(backend: str) -> Lap:
    """A solve without gradients that is then looked at between its save times."""
    rate = Rate()

    def run(draw: random.Random) -> None:
        with torch.no_grad():
            saveat = pynode.SaveAt(ts=[0.0, 1.0], dense=True)
            sol = pynode.solve(rate, torch.randn(3, 2), [0.0, 1.0], saveat=saveat, backend=backend)
            sol(draw.random())

    return run


def _crossing(t: Tensor, y: Tensor) -> Tensor:
    return y[0, 0] - 0.05


def _halved(t: Tensor, y: Tensor) -> Tensor:
    return 0.5 * y


def _row_crossing(t: Tensor, y: Tensor) -> Tensor:
    return y[:, 0] - 0.05


_row_event = pynode.Event(_row_crossing, terminal=False, effect=_halved)


def native_laps(compiled: tuple[str, ...] = ("solve", "step")) -> dict[str, Lap]:
    """Iterations by the torch backend; ``compiled``: those of ``compile=`` that take part."""
    rows: dict[str, Any] = {"batching": "independent"}
    laps: dict[str, Lap] = {
        "Tsit5, CheckpointedAdjoint": Trainer(Rate(), (2, 4, 7)),
        "Tsit5, checkpoints=3": Trainer(Rate(), sensealg=pynode.CheckpointedAdjoint(checkpoints=3)),
        "RK4, DirectAdjoint": Trainer(Rate(), algorithm=pynode.RK4(steps=5), sensealg=pynode.DirectAdjoint()),
        "BS3, GaussAdjoint": Trainer(Rate(), algorithm="BS3", sensealg=pynode.GaussAdjoint()),
        "DP5, InterpolatingAdjoint": Trainer(Rate(), algorithm="DP5", sensealg=pynode.InterpolatingAdjoint()),
        "Tsit5, BacksolveAdjoint": Trainer(Rate(), sensealg=pynode.BacksolveAdjoint()),
        "Tsit5, QuadratureAdjoint": Trainer(Rate(), sensealg=pynode.QuadratureAdjoint()),
        "Tsit5, ForwardSensitivity": Trainer(Rate(2), (1,), sensealg=pynode.ForwardSensitivity()),
        "ReversibleHeun, ReversibleAdjoint": Trainer(
            Rate(), algorithm=pynode.ReversibleHeun(steps=8), sensealg=pynode.ReversibleAdjoint()
        ),
        "KenCarp4": Trainer(Rate(), (2,), algorithm="KenCarp4"),
        "Rodas5P": Trainer(Rate(), (2,), algorithm="Rodas5P"),
        "FBDF": Trainer(Rate(), (2,), algorithm="FBDF"),
        "VCABM": Trainer(Rate(), algorithm="VCABM"),
        "ROCK2": Trainer(Rate(), algorithm="ROCK2"),
        "AutoSwitch": Trainer(Rate(), (2,), algorithm=pynode.AutoSwitch()),
        "tree": Trainer(Rate(), (3, 5), tree=True),
        "terminal event": Trainer(Rate(), events=pynode.Event(_crossing)),
        "event with effect": Trainer(Rate(), events=pynode.Event(_crossing, terminal=False, effect=_halved)),
        "sol(t)": Trainer(Rate(), saveat=pynode.SaveAt(ts=[0.5, 1.0], dense=True)),
        "running cost": Trainer(Rate(), running_cost=lambda t, y: y.square().sum()),
        "warm start": Trainer(Rate(), dt0=pynode.WarmStart()),
        "rows": Trainer(Rate(), (3, 6), **rows),
        "rows with events": Trainer(
            Rate(), (3, 5), events=pynode.Event(_row_crossing, terminal=False, effect=_halved), **rows
        ),
        "rows, DirectAdjoint": Trainer(Rate(), (3,), sensealg=pynode.DirectAdjoint(), **rows),
        "a new model": fresh(lambda: Trainer(Rate())),
        "a new model, GaussAdjoint": fresh(lambda: Trainer(Rate(), sensealg=pynode.GaussAdjoint())),
        "no gradient, sol(t)": _looked_at("torch"),
        "a solve that blows up": failing(_blow_up(), pynode.SolveError),
        "a field that raises": failing(Trainer(Faulty()), ArithmeticError),
        "a field of the wrong shape": failing(_wrong, pynode.FieldError),
    }
    if "solve" in compiled:
        laps["compiled solve"] = Trainer(Rate(), compile="solve")
        laps["compiled solve, many shapes"] = Trainer(Rate(), tuple(range(1, 13)), compile="solve")
        laps["compiled solve, a new model"] = fresh(lambda: Trainer(Rate(), compile="solve"))
        laps["compiled solve that cannot be"] = Trainer(Looking(), compile="solve")
        laps["compiled solve that blows up"] = failing(_blow_up(compile="solve"), pynode.SolveError)
    if "step" in compiled:
        laps["compiled step"] = Trainer(Rate(), compile="step")
    return laps


def julia_laps() -> dict[str, Lap]:
    """Iterations by the Julia backend: few kinds, as Julia compiles for each."""
    own: dict[str, Any] = {"backend": "julia"}
    return {
        "Julia, GaussAdjoint": Trainer(Rate(), **own),
        "Julia, two shapes": Trainer(Rate(), (3, 5), **own),
        "Julia, InterpolatingAdjoint": Trainer(Rate(), sensealg=pynode.InterpolatingAdjoint(), **own),
        "Julia, called back": Trainer(Looking(), **own),
        "Julia, a new model": fresh(lambda: Trainer(Rate(), **own)),
        "Julia, no gradient, sol(t)": _looked_at("julia"),
        "Julia, a solve that blows up": failing(_blow_up(backend="julia"), pynode.SolveError),
        "Julia, a field that raises": failing(Trainer(Faulty(), **own), ArithmeticError),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that some of the laps are there for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
