"""The order and the step size of variable-order multistep methods."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.bench.solver_runs import run
from pynode.native.order_choice import OrderChoice


@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize("ratio", [1e-6, 0.02, 0.1, 0.29, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("proposed", [0.7, 1.6, 5.0])
def test_a_step_grows_to_no_more_than_the_next_one_may_keep(order, ratio, proposed):
    """An error of order k is expected to change like h^(k + 1). Above half the tolerance the next step would shrink,
    and steps that grow and shrink in turn are never equal for as long as a higher order asks for."""
    choice = OrderChoice(order)
    choice.order = order
    # Lower orders have larger errors, so that this one stays.
    choice.accepted(lambda k: ratio * 10.0 ** (order - k), order)
    assert choice.order == order
    factor = choice.steer(proposed, True)
    assert factor <= 1.0 or (factor <= proposed and ratio * factor ** (order + 1) <= 0.5 * (1 + 1e-12))


def test_the_order_rises_at_loose_tolerances():
    """On a smooth problem of quick and slow parts; at order 1 all the way it took 109 steps, 16 more rejected, to an
    error of nine tolerances."""
    found = run("pollu", "FBDF", "pynode", 1e-3)
    assert not found.failure
    assert found.error <= 3e-3

    instance = pynode.problems.STIFF["pollu"].build()
    with torch.no_grad():
        options = {"rtol": 1e-3, "atol": 1e-7}
        first, any_order = (
            pynode.solve(instance.field, instance.y0, instance.t[[0, -1]], algorithm=pynode.FBDF(k), **options)
            for k in (1, 5)
        )
    assert any_order.stats.forward.rejected <= any_order.stats.forward.accepted / 10
    assert any_order.stats.forward.accepted < first.stats.forward.accepted
