"""torchdyn's classes and functions over pynode: put ``pynode.compat.torchdyn`` where a program says ``torchdyn``.

``core``, ``nn``, ``models``, ``numerics``, ``datasets`` and ``utils`` have the public names of torchdyn 1.0.6 with its
arguments, defaults, return values (``(t_eval, trajectory)``) and parameter names. torchdyn itself is not needed, nor is
pytorch-lightning: models are ``torch.nn.Module``, which a LightningModule may hold.

What differs, on purpose:

- ``sensitivity="autograd"`` is ``DirectAdjoint``, ``"adjoint"`` is ``BacksolveAdjoint`` with the seminorm (torchdyn
  uses it whatever ``seminorm=`` says) and ``"interpolated_adjoint"`` is ``InterpolatingAdjoint``, whose interpolant is
  the solver's own. It returns the states at ``t_span``, not all that were computed. Parameters of an integral loss,
  every time in ``t_span``, ``args`` and the control of ``DataControl`` receive their gradients.
- ``t`` and the control reach ``DepthCat`` and ``DataControl`` in the call itself: nothing is kept in the model, so that
  solves may run in several threads. Modules of the user's own that have an attribute ``t`` still find the time in it.
- Adaptive methods interpolate at the times of ``t_span`` instead of shortening steps; ``save_at`` works with them.
  ``rk4`` evaluates at the abscissae of the classical method (torchdyn's are off by one stage, which lowers its order
  for fields that depend on time). For a reversed ``t_span``, ``t_eval`` is ``t_span`` (torchdyn: its negative).
- A solve that fails says so (:class:`pynode.SolveError`) instead of running on.

Not offered, and an ``UnsupportedError`` where used: stochastic equations, multiple shooting, events
(``odeint_hybrid``), the implicit Euler method.
"""

from pynode.compat.torchdyn import core, datasets, models, nn, numerics, utils

__all__ = ["core", "datasets", "models", "nn", "numerics", "utils"]
