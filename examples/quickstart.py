"""Fit a spiral: a network learns dy/dt = f(t, y) from short stretches of one solution."""

import torch

import pynode

torch.manual_seed(0)
y0, ts = torch.tensor([[2.0, 0.0]]), torch.linspace(0.0, 25.0, 251)
turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
with torch.no_grad():
    spiral = pynode.solve(lambda t, y: y**3 @ turn, y0, ts).ys[:, 0]  # (251, 2): the data


class Field(torch.nn.Module):  # dy/dt = f(t, y)
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))

    def forward(self, t, y):
        return self.net(y**3)


field = Field()
optimizer = torch.optim.Adam(field.parameters(), 1e-2)
for iteration in range(201):
    starts = torch.randint(0, 246, (64,))
    target = spiral[starts + torch.arange(6)[:, None]]  # (6, 64, 2): 64 stretches of half a unit of time
    sol = pynode.solve(field, spiral[starts], ts[:6])  # Tsit5, rtol=1e-5, atol=1e-7
    loss = (sol.ys - target).abs().mean()
    optimizer.zero_grad()
    loss.backward()  # exact gradients of the steps that were taken
    optimizer.step()
    if iteration % 50 == 0:
        print(f"iteration {iteration:3}: loss {loss.item():.4f}, {sol.stats.forward.nfe} evaluations")

with torch.no_grad():
    fitted = pynode.solve(field, y0, ts)
print(f"mean error of the whole spiral: {(fitted.ys[:, 0] - spiral).abs().mean().item():.3f}")
print(sol)  # how the last solve ended, what forward and backward cost
fitted(torch.tensor([0.5, 12.3])), fitted.derivative(3.0)  # dense output
