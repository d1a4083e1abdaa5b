"""How deep is an ODE-net? As deep as its tolerance asks, and deeper while it learns (Chen et al. 2018, Figure 3).

    python examples/depth_and_tolerance.py --dataset mnist     # --data DIR or PYNODE_DATA: see data.py; for a GPU
    python examples/depth_and_tolerance.py --quick             # scikit-learn's digits, 16 channels, 4 epochs

An ODE-net (``odenet_mnist.py``'s, with SiLU in the place of ReLU) is trained at one tolerance. Then, as in the figure:

a. *error control at test time*: the trained network is solved at other tolerances. Its state's error against a solve
   in float64 at 1e-10 follows the tolerance, and evaluations are the price of it;
b. the time of a forward pass against its evaluations, to which it is proportional;
c. evaluations of the backward against those of the forward pass, of one gradient at each tolerance and for each
   sensitivity algorithm. An adjoint that is integrated backward has steps of its own; the exact discrete adjoint
   evaluates each accepted step's stages once more, and none of the rejected ones;
d. evaluations of a forward pass over the epochs: what is learned gets harder to solve.

Evaluations are counted where they happen: forward ``sol.stats.forward.nfe`` (the search for the first step and rejected
steps included), backward ``sol.stats.backward``, where ``nfe`` are evaluations and ``nvjp`` products with the field's
Jacobian. An adjoint's right-hand side is one of each, so that figure c compares the backward ``nvjp`` with the forward
``nfe``; "about half" was said of it in a talk on the paper, here it is measured. Its loss is summed over the batch, so
that the adjoint is not small beside its absolute tolerance, which is the forward one.

Differs from the paper: SiLU, whose solves can be held to tight tolerances (ReLU's kinks break every method's order);
group normalisation; Tsit5; trained with the exact discrete adjoint; the error is that of the state at t = 1, relative
and in the root mean square over one batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from data import add_arguments, load_images
from odenet_mnist import accuracy, ode_net
from torch import Tensor, nn

import pynode
from pynode.demo.data import Dataset
from pynode.nn import NeuralODE

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
WAYS: dict[str, Any] = {
    "CheckpointedAdjoint": pynode.CheckpointedAdjoint(),
    "BacksolveAdjoint": pynode.BacksolveAdjoint(),
    "BacksolveAdjoint, full norm": pynode.BacksolveAdjoint(norm="full"),
    "GaussAdjoint": pynode.GaussAdjoint(),
}


def trained(model: NeuralODE, data: Dataset, epochs: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """Trains with Adam; of every epoch the test accuracy and the mean evaluations of a pass over a batch."""
    device, history = torch.device(options.device), []
    if device.type == "cpu":
        model = model.with_solver(compile="solve")  # the same steps, and the same parameters, in C++
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    batches = len(data.train_labels) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(options.seed)
    solved: list[pynode.Stats] = []
    handle = model.register_solve_hook(lambda ode, inputs, sol: solved.append(sol.stats))
    for epoch in range(epochs):
        solved.clear()
        for rows in torch.randperm(len(data.train_labels), generator=generator)[: batches * options.batch].split(
            options.batch
        ):
            loss = nn.functional.cross_entropy(
                model(data.train_images[rows].to(device)), data.train_labels[rows].to(device)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        row = {
            "forward": statistics.mean(stats.forward.nfe for stats in solved),
            "backward": statistics.mean(stats.backward.nvjp for stats in solved),
            "test": accuracy(model, data.test_images, data.test_labels, device),
        }
        history.append(row)
        print(
            f"epoch {epoch + 1}/{epochs}: {row['forward']:.1f} evaluations forward, {row['backward']:.1f} products "
            f"backward, test {row['test']:.2f} %",
            file=sys.stderr,
            flush=True,
        )
    handle.remove()
    return history


def at_test_time(model: NeuralODE, data: Dataset, batch: Tensor) -> list[dict[str, float]]:
    """The trained model at each tolerance: evaluations, error of the state, accuracy, time."""
    exact = copy.deepcopy(model).double().with_solver(rtol=1e-10, atol=1e-10)
    found = []
    with torch.no_grad():
        true = exact.solve(batch.double()).ys[-1]
        for tolerance in TOLERANCES:
            tested = model.with_solver(rtol=tolerance, atol=tolerance)
            seconds = []
            for _ in range(5):
                begun = time.perf_counter()
                sol = tested.solve(batch)
                error = ((sol.ys[-1] - true).square().mean() / true.square().mean()).sqrt().item()  # waits for a GPU
                seconds.append(time.perf_counter() - begun)
            row = {"tolerance": tolerance, "nfe": sol.stats.forward.nfe, "error": error, "seconds": min(seconds)}
            row["test"] = accuracy(tested, data.test_images, data.test_labels, batch.device)
            found.append(row)
            print(f"tolerance {tolerance:g}: {row}", file=sys.stderr, flush=True)
    return found


def of_gradients(model: NeuralODE, batch: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """One gradient at each tolerance and by each algorithm: evaluations of both directions."""
    assert model.output is not None
    found = []
    for name, way in WAYS.items():
        for tolerance in TOLERANCES[1:-1]:
            row: dict[str, Any] = {"way": name, "tolerance": tolerance}
            found.append(row)
            model.zero_grad()
            try:
                sol = model.with_solver(rtol=tolerance, atol=tolerance, sensealg=way).solve(batch)
                nn.functional.cross_entropy(model.output(sol.ys[-1]), labels, reduction="sum").backward()
            except pynode.PynodeError as error:  # a state that cannot be integrated backward, say
                row["failed"] = str(error).splitlines()[0]
                print(f"{name} at {tolerance:g}: {row['failed']}", file=sys.stderr)
                continue
            forward, backward = sol.stats.forward, sol.stats.backward
            row |= {"forward": forward.nfe, "backward": backward.nfe, "products": backward.nvjp}
            print(f"{name} at {tolerance:g}: {row}", file=sys.stderr, flush=True)
    model.zero_grad()
    return found


def picture(
    tests: list[dict[str, float]], gradients: list[dict[str, Any]], history: list[dict[str, float]], path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.4), dpi=120, layout="constrained")
    error, seconds, backward, epochs = figure.subplots(1, 4)
    nfe = [row["nfe"] for row in tests]
    error.loglog([row["error"] for row in tests], nfe, "o-")
    error.set(xlabel="relative error of the state", ylabel="evaluations", title="a. error control at test time")
    seconds.plot(nfe, [row["seconds"] for row in tests], "o-")
    seconds.set(xlabel="evaluations", ylabel="seconds of a forward pass", title="b. time", ylim=(0, None))
    for i, name in enumerate(WAYS):
        points = [(row["forward"], row["products"]) for row in gradients if row["way"] == name and "failed" not in row]
        backward.plot(*zip(*points, strict=True) if points else ([], []), "o-", ms=3, color=f"C{i}", label=name)
    backward.axline((0, 0), slope=1.0, color="k", ls=":", lw=0.8)
    backward.set(xlabel="forward evaluations", ylabel="backward products", title="c. backward against forward")
    backward.legend(fontsize=6)
    epochs.plot(range(1, len(history) + 1), [row["forward"] for row in history], "o-", ms=3)
    epochs.set(xlabel="epoch", ylabel="evaluations", title="d. depth over training")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "mnist")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, 16 channels, 4 epochs")
    parser.add_argument("--train", type=int, help="training images at most")
    parser.add_argument("--test", type=int, help="test images at most")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--pool", type=int, help="pixels a side that are left for the linear layer")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float, default=3e-3, help="the schedule's peak")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="rtol and atol of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, default=Path("depth_and_tolerance.png"), help="also .json")
    options = parser.parse_args()
    begun = time.perf_counter()
    epochs = options.epochs or (4 if options.quick else 20)
    channels = options.channels or (16 if options.quick else 64)
    pool = options.pool or (3 if options.quick else 1)
    dataset = "digits" if options.quick else options.dataset
    data = load_images(dataset, options.data, train=options.train, test=options.test)
    options.batch = min(options.batch or (32 if options.quick else 128), len(data.train_labels))
    torch.manual_seed(options.seed)
    tolerances = {"rtol": options.tolerance, "atol": options.tolerance}
    model = ode_net(data, channels, nn.SiLU, pool, **tolerances).to(options.device)

    history = trained(model, data, epochs, options)
    batch = data.test_images[: options.batch].to(options.device)
    labels = data.test_labels[: options.batch].to(options.device)
    tests = at_test_time(model, data, batch)
    gradients = of_gradients(model, batch, labels)

    print(f"{data.name}, {len(data.train_labels)} training images, {epochs} epochs, {channels} channels, trained in")
    print(f"batches of {options.batch} at tolerance {options.tolerance:g}, seed {options.seed}, on {options.device}\n")
    print("d. evaluations of a forward pass, in the mean over an epoch")
    print(f"   first epoch {history[0]['forward']:.1f}, last {history[-1]['forward']:.1f}\n")
    print("a, b. the trained network at other tolerances")
    print(f"{'tolerance':>10} {'evaluations':>12} {'error':>9} {'test %':>7} {'ms':>8} {'ms an evaluation':>17}")
    for row in tests:
        ms = 1000 * row["seconds"]
        print(
            f"{row['tolerance']:10g} {row['nfe']:12d} {row['error']:9.1e} {row['test']:7.2f} {ms:8.1f} "
            f"{ms / row['nfe']:17.2f}"
        )
    print("\nc. one gradient: evaluations forward and backward, products with the Jacobian backward")
    print(f"{'':28} {'tolerance':>10} {'forward':>8} {'backward':>9} {'products':>9} {'products / forward':>19}")
    for row in gradients:
        start = f"{row['way']:28} {row['tolerance']:10g}"
        if "failed" in row:
            print(f"{start} failed: {row['failed'][:70]}")
            continue
        ratio = row["products"] / row["forward"]
        print(f"{start} {row['forward']:8d} {row['backward']:9d} {row['products']:9d} {ratio:19.2f}")
    print("   (of the paper's Figure 3, in a talk on it: backward about half of forward)")
    found = {"data": data.name, "history": history, "tests": tests, "gradients": gradients}
    options.plot.with_suffix(".json").write_text(json.dumps(found, indent=1))
    try:
        picture(tests, gradients, history, options.plot)
    except ImportError:
        print("no picture: pip install matplotlib", file=sys.stderr)
    print(f"\n{options.plot}; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
