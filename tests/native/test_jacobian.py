"""Jacobians of fields and the linear systems made of them, against torch's own and against plain linear algebra."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.native.linear_operator import Factored, gmres, linearise
from pynode.problem import ODEProblem
from pynode.solution import Counts

F64 = torch.float64
torch.manual_seed(0)
W = torch.randn(5, 5, dtype=F64)
Y = torch.randn(5, dtype=F64)


def f(t, y):
    return torch.tanh(W @ y) * t


def field_of(f, y0=Y, **options):
    problem = ODEProblem(f, y0, [0.0, 1.0], **options)
    return problem.field(Counts()), problem.y0


def exact(f=f, t=0.7, y=Y):
    return torch.autograd.functional.jacobian(lambda y: f(t, y), y)


class _NoBatches(torch.autograd.Function):
    """tanh, whose backward torch.vmap refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        if torch._C._functorch.is_batchedtensor(gradient):
            raise RuntimeError("not for batches")
        return gradient * (1 - torch.tanh(x) ** 2)


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_jacobian_is_torchs_own(grad):
    field, y = field_of(f)
    with grad():
        found = field.jacobian(field.time(0.7), y)
    assert not found.requires_grad
    torch.testing.assert_close(found.clone(), exact(), rtol=1e-15, atol=1e-15)
    assert (field.counts.njac, field.counts.nfe, field.counts.nvjp) == (1, 0, 0)


def test_row_by_row_where_vmap_refuses():
    field, y = field_of(lambda t, y: _NoBatches.apply(W @ y) * t)
    for _ in range(2):
        torch.testing.assert_close(field.jacobian(field.time(0.7), y), exact(), rtol=1e-15, atol=1e-15)
        assert not field.batches


def test_of_a_tree_with_complex_numbers_it_is_that_of_the_flat_real_vector():
    y0 = {"a": torch.randn(2, dtype=torch.complex128), "b": torch.randn(3, dtype=F64)}
    field, y = field_of(lambda t, y: {"a": y["a"] ** 2 * y["b"][0], "b": y["a"].abs().sum() * y["b"]}, y0)
    expected = torch.autograd.functional.jacobian(lambda flat: field(field.time(0.0), flat), y)
    torch.testing.assert_close(field.jacobian(field.time(0.0), y), expected, rtol=1e-14, atol=1e-14)


def test_a_field_of_time_alone_has_a_zero_jacobian():
    field, y = field_of(lambda t, y: t * torch.ones(5, dtype=F64))
    assert torch.equal(field.jacobian(field.time(0.7), y), torch.zeros(5, 5, dtype=F64))


def test_the_users_jacobian_is_taken_with_args_and_in_any_shape():
    y0 = Y[:4].reshape(2, 2)
    seen = []

    def jac(t, y, scale):
        seen.append((float(t), y.shape))
        return (scale * torch.eye(4, dtype=F64)).reshape(2, 2, 2, 2)

    field, y = field_of(lambda t, y, scale: scale * y, y0, args=(3.0,), jac=jac)
    assert torch.equal(field.jacobian(field.time(0.5), y), 3.0 * torch.eye(4, dtype=F64))
    assert seen == [(0.5, (2, 2))]
    assert field.counts.njac == 1


@pytest.mark.parametrize("wrong", [torch.ones(4, 5, dtype=F64), torch.ones(5, 5), None, [[1.0] * 5] * 5])
def test_a_jacobian_of_another_form_is_refused(wrong):
    field, y = field_of(f, jac=lambda t, y: wrong)
    with pytest.raises(pynode.InputError, match=r"jac returned.*5 x 5 numbers.*drop jac="):
        field.jacobian(field.time(0.0), y)


def test_jac_goes_with_one_real_tensor_only():
    jac = lambda t, y: y  # noqa: E731
    with pytest.raises(pynode.InputError, match=r"not one real tensor.*drop jac="):
        field_of(f, (Y,), jac=jac)
    with pytest.raises(pynode.InputError, match="running cost"):
        field_of(f, jac=jac, running_cost=lambda t, y: y.sum())
    with pytest.raises(pynode.InputError, match="jac is a float"):
        field_of(f, jac=1.0)


@pytest.mark.parametrize("mass", [None, torch.diag(torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5], dtype=F64))])
@pytest.mark.parametrize("linsolve", ["dense", "gmres"])
def test_the_linear_systems_and_their_pullback(linsolve, mass):
    field, y = field_of(f, mass_matrix=mass)
    linear = linearise(field, 0.7, y, linsolve)
    matrix = (torch.eye(5, dtype=F64) if mass is None else mass) - 0.3 * exact()
    b, a = (torch.randn(5, dtype=F64) for _ in range(2))
    # GMRES leaves a residual of 1e-10; the condition numbers here are below 100.
    close = {"rtol": 0.0, "atol": 1e-7 if linsolve == "gmres" else 1e-12}
    b.requires_grad_()
    x = linear.operator(0.3).solve(b)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), **close)
    (pulled,) = torch.autograd.grad(x, b, a)
    torch.testing.assert_close(pulled, torch.linalg.solve(matrix.t(), a), **close)
    torch.testing.assert_close(linear.times(a), exact() @ a, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(linear.pulled(a), a @ exact(), rtol=1e-13, atol=1e-13)
    assert field.counts.njac == 1


def test_gmres_says_nan_where_there_is_no_solution():
    singular = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
    assert gmres(singular.mv, torch.ones(2, dtype=F64)).isnan().all()
    assert torch.equal(gmres(singular.mv, torch.zeros(2, dtype=F64)), torch.zeros(2, dtype=F64))


def test_a_singular_matrix_gives_no_finite_numbers():
    assert not Factored(torch.zeros(2, 2, dtype=F64), Counts()).solve(torch.ones(2, dtype=F64)).isfinite().any()


def test_large_states_are_pointed_to_gmres():
    field, y = field_of(lambda t, y: -y, torch.zeros(6001))
    with pytest.raises(pynode.UnsupportedError, match=r"dense 6001 x 6001.*linsolve='gmres'"):
        linearise(field, 0.0, y)
    with pytest.raises(pynode.InputError, match="'dense' or 'gmres'"):
        pynode.TRBDF2(linsolve="lu")
