"""What a field's emitted functions have to give: the products by torch's own autograd, and how far rounding may take
another evaluation from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fields import Made
from julia_process import Point, Values
from torch import Tensor

from pynode.dependencies import Dependencies
from pynode.problem import ODEProblem
from pynode.solution import Counts


class TorchField:
    """A field of the zoo, its parameters as one vector in the order of its Dependencies."""

    def __init__(self, made: Made) -> None:
        self.problem = ODEProblem(made.f, made.y0, list(made.times), made.args)
        dependencies = Dependencies(self.problem, Counts(), None)
        self.tensors = [*dependencies.arguments, *dependencies.parameters]
        self.dtype = self.problem.layout.dtype

    def points(self) -> tuple[Point, Point]:
        """The initial time, state and parameters, and others a tenth from them."""
        generator = torch.Generator().manual_seed(1)
        u = self.problem.y0.detach()
        p = torch.cat([torch.zeros(0, dtype=self.dtype), *(x.detach().flatten() for x in self.tensors)])

        def near(x: Tensor) -> Tensor:
            # Rounded to float32: the same numbers in both precisions. Zeros become positive.
            steps = torch.randint(-13, 14, x.shape, generator=generator) / 128
            return torch.where(x == 0, steps.abs() + 0.01, x.float() * (1 + steps)).to(self.dtype)

        first, second = (torch.randn(u.shape, generator=generator).to(self.dtype) for _ in range(2))
        times = self.problem.times
        return Point(times[0], u.clone(), p, first), Point(times[1], near(u), near(p), second)

    def values(self, point: Point) -> Values:
        """``f`` and its products at a point."""
        with torch.no_grad():
            for tensor, own in zip(self.tensors, point.p.split([x.numel() for x in self.tensors]), strict=True):
                tensor.copy_(own.view_as(tensor))
        u = point.u.clone().requires_grad_()
        a = point.a.clone().requires_grad_()
        t = torch.tensor(point.t, dtype=self.dtype, requires_grad=True)
        f = self.problem.field(Counts())(t, u + 0)
        inputs = [t, u, *self.tensors]
        vjp_t, vjp, *rest = _gradients(f, inputs, a)
        vjp_p = torch.cat([torch.zeros(0, dtype=self.dtype), *(x.flatten() for x in rest)])
        (tgrad,) = _gradients(vjp_t, [a])  # a·∂f/∂t is linear in a
        return Values(*(x.detach().clone() for x in (f, vjp, vjp_p, vjp_t, tgrad)))


def _gradients(output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor | None = None) -> list[Tensor]:
    """Zeros where there is no dependence."""
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(output, inputs, cotangent, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


NAMES = ("f", "vjp", "vjp_p", "vjp_t", "tgrad")


class Reference:
    """A field's values at two points in float64, and the bound for each precision.

    Rounding errors are proportional to the machine epsilon, with a factor that the computation decides: its own error
    in float32, which is seen, gives it. An evaluation in another order has an error of the same size, not the same
    error: 8 times it is allowed, or 64 epsilons of the result's largest element where float32 happened to be lucky.
    """

    def __init__(self, make: Callable[[torch.dtype], Made]) -> None:
        single, double = TorchField(make(torch.float32)), TorchField(make(torch.float64))
        self.points = {torch.float32: single.points(), torch.float64: double.points()}
        for few, many in zip(*self.points.values(), strict=True):
            assert few.t == many.t
            assert all(torch.equal(getattr(few, x).double(), getattr(many, x)) for x in ("u", "p", "a"))
        self.exact = [double.values(point) for point in self.points[torch.float64]]
        rough = [single.values(point) for point in self.points[torch.float32]]
        self.epsilons = [
            {name: self._factor(name, i, getattr(rough[i], name)) for name in NAMES} for i in range(len(rough))
        ]

    def _factor(self, name: str, i: int, rough: Tensor) -> float:
        """The bound as a number of machine epsilons."""
        exact = getattr(self.exact[i], name)
        if exact.numel() == 0:
            return 0.0
        error = (rough.double() - exact).abs().max().item() / torch.finfo(torch.float32).eps
        if name == "vjp_t":  # its terms may cancel
            a = self.points[torch.float64][i].a
            return max(8 * error, 64 * (a * self.exact[i].tgrad).abs().sum().item())
        return max(8 * error, 64 * exact.abs().max().item())

    def deviations(self, values: Sequence[Values]) -> list[str]:
        """What differs by more than rounding; nothing where all is well."""
        found = []
        for i, (exact, epsilons) in enumerate(zip(self.exact, self.epsilons, strict=True), start=1):
            for name in NAMES:
                got, wanted = getattr(values[i - 1], name), getattr(exact, name)
                if wanted.numel() == 0:
                    continue
                bound = epsilons[name] * torch.finfo(got.dtype).eps
                distance = (got.double() - wanted).abs().max().item()
                if not distance <= bound or not math.isfinite(distance):
                    found.append(f"{name} at point {i} is {distance:.3g} from torch's, allowed {bound:.3g}")
        return found
