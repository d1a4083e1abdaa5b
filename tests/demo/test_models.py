"""The demo's networks: the same block in both, and counts that mean what they say."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.demo.models import Block, Classifier, ODEBody, ResidualBody, ode_net, res_net
from pynode.nn import NeuralODE


def make_ode_net(channels: int = 8, size: int = 8, tolerance: float = 1e-3) -> Classifier:
    return ode_net(
        channels,
        size,
        10,
        algorithm=pynode.Tsit5(),
        sensealg=pynode.CheckpointedAdjoint(),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize(("size", "side"), [(8, 4), (16, 4), (28, 7)])
@pytest.mark.parametrize("make", [make_ode_net, lambda channels, size: res_net(channels, size, 10)])
def test_images_become_logits_by_way_of_a_small_state(make, size, side):
    model = make(8, size)
    images = torch.randn(3, 1, size, size)
    assert model.stem(images).shape == (3, 8, side, side)
    assert model(images).shape == (3, 10)


def test_both_bodies_are_made_of_the_same_block():
    ode, res = make_ode_net(), res_net(8, 8, 10)
    block = sum(p.numel() for p in Block(8).parameters())
    assert isinstance(ode.body, ODEBody)
    assert isinstance(res.body, ResidualBody)
    assert sum(p.numel() for p in ode.body.parameters()) == block
    assert sum(p.numel() for p in res.body.parameters()) == 6 * block
    outside = sum(p.numel() for p in ode.parameters()) - block
    assert sum(p.numel() for p in res.parameters()) == outside + 6 * block


def test_one_residual_block_is_one_euler_step_of_the_ode():
    res = ResidualBody(8, blocks=1)
    ode = ODEBody(NeuralODE(res.blocks[0], algorithm=pynode.Euler(steps=1)))
    y = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(res(y), ode(y))


def test_the_field_of_one_sample_does_not_depend_on_the_others_or_on_the_mode():
    block, y, t = Block(8), torch.randn(5, 8, 4, 4), torch.tensor(0.3)
    together = block(t, y)
    torch.testing.assert_close(together[2:3], block(t, y[2:3]))
    torch.testing.assert_close(together, block.eval()(t, y))


def test_the_field_depends_on_time_and_is_smooth_in_the_state():
    block, y = Block(8).double(), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    assert not torch.allclose(block(torch.tensor(0.0).double(), y), block(torch.tensor(1.0).double(), y))
    direction = torch.randn_like(y)
    t = torch.tensor(0.5).double()

    def second_difference(h: float) -> torch.Tensor:
        return (block(t, y + h * direction) - 2 * block(t, y) + block(t, y - h * direction)) / h**2

    # A kink would make the second difference grow like 1 / h.
    torch.testing.assert_close(second_difference(1e-3), second_difference(5e-4), rtol=1e-3, atol=1e-3)


def test_statistics_are_those_of_the_last_gradient():
    model = make_ode_net()
    images, labels = torch.randn(4, 1, 8, 8), torch.randint(0, 10, (4,))
    for _ in range(2):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        stats = model.body.stats
        assert stats.forward.nfe >= 7
        assert stats.backward.nvjp >= 6
    repeated = model.body.stats
    assert (stats.forward.nfe, stats.backward.nvjp) == (repeated.forward.nfe, repeated.backward.nvjp)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_residual_net_counts_its_blocks():
    stats = res_net(8, 8, 10).body.stats
    assert stats.forward.nfe == stats.backward.nvjp == 6
    assert stats.backward.nfe == 0


def test_tighter_tolerances_converge_to_one_function():
    torch.manual_seed(0)
    models = {tolerance: make_ode_net(tolerance=tolerance).double() for tolerance in (1e-3, 1e-6, 1e-9)}
    for model in models.values():
        model.load_state_dict(models[1e-9].state_dict())
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        exact = models[1e-9](images)
        coarse, fine = ((models[tolerance](images) - exact).abs().max().item() for tolerance in (1e-3, 1e-6))
    assert fine < 1e-5
    assert fine < coarse < 1e-1
