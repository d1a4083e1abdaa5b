"""``pynode demo``: its options, and the job from the data to the picture."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pynode.algorithms import Algorithm, FixedStep, algorithm_from_name
from pynode.demo import extras
from pynode.demo.data import Dataset, load_digits, load_idx
from pynode.demo.gradient_check import check_gradient
from pynode.demo.memory import peak_memory
from pynode.demo.models import Classifier, ode_net, res_net
from pynode.demo.picture import check_format, draw
from pynode.demo.report import Result, check_summary, comparison_table
from pynode.demo.training import Epoch, gradient_step, train
from pynode.errors import InputError, explain
from pynode.sensealg_names import sensealg_from_name

if TYPE_CHECKING:
    from rich.console import Console

_CHECKED_SAMPLES = 4


def main(argv: list[str]) -> int:
    """Run the demo; 0 if the trained ODE-net's gradient passes its check, 1 if it does not."""
    options = _parser().parse_args(argv)
    needed = ["rich", "scipy"]
    needed += [] if options.data else ["sklearn"]
    needed += [] if options.no_picture else ["matplotlib"]
    extras.require(needed)
    from rich.console import Console

    start = time.perf_counter()
    device = _device(options.device)
    algorithm = _algorithm(options.algorithm, options.steps)
    sensealg = sensealg_from_name(options.sensealg)
    for path in (None if options.no_picture else options.output, options.json):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(explain(f"cannot write {path}", "an existing folder", f"mkdir -p {path.parent}"))
    if not options.no_picture:
        check_format(options.output)
    # Layers on 8 x 8 pixels are too small to share among cores, and waiting threads cost more than they bring.
    threads = options.threads or (None if options.data else 1)
    if threads is not None:
        torch.set_num_threads(threads)
    data = load_idx(options.data) if options.data else load_digits()
    if options.samples is not None:
        data = data.limited(options.samples)
    data = data.to(device)
    epochs = options.epochs or (3 if options.data else 7)

    console = Console()
    console.print(
        f"{data.name}: {len(data.train_images)} training and {len(data.test_images)} test images, on {device}; "
        f"{algorithm.name}, {sensealg.name}, rtol {options.rtol:g}, atol {options.atol:g}"
    )
    shape = (options.channels, min(data.train_images.shape[2:]), data.classes)
    torch.manual_seed(options.seed)
    ode = ode_net(*shape, algorithm=algorithm, sensealg=sensealg, rtol=options.rtol, atol=options.atol).to(device)
    res = res_net(*shape).to(device)
    results = [
        _train_and_measure(name, model, data, epochs, options, console)
        for name, model in (("ODE-net", ode), ("ResNet", res))
    ]
    console.print(comparison_table(results, f"{data.name}, {epochs} epochs, seed {options.seed}", device.type))

    check = check_gradient(
        ode, data.test_images[:_CHECKED_SAMPLES], data.test_labels[:_CHECKED_SAMPLES], seed=options.seed
    )
    console.print(check_summary(check), highlight=False, soft_wrap=True)
    if not options.no_picture:
        scores = ", ".join(f"{result.network} {result.history.last.accuracy:.1%}" for result in results)
        draw(options.output, ode, data, results, f"One block as an ODE and six as a ResNet: {data.name}, {scores}")
        console.print(f"picture: {options.output}", soft_wrap=True)
    if options.json is not None:
        content = {
            "data": data.name,
            "seed": options.seed,
            "results": [result.as_json() for result in results],
            "gradient_check": check.as_json(),
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        console.print(f"numbers: {options.json}", soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    return 0 if check.passed else 1


def _train_and_measure(
    name: str, model: Classifier, data: Dataset, epochs: int, options: argparse.Namespace, console: Console
) -> Result:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]}  test accuracy {task.fields[accuracy]}"),
    )
    batches = epochs * math.ceil(len(data.train_images) / options.batch_size)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=batches, loss="-", accuracy="-")

        def on_epoch(epoch: Epoch) -> None:
            progress.update(task, accuracy=f"{epoch.accuracy:.2%}")

        history = train(
            model,
            data,
            epochs=epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            on_batch=lambda loss: progress.update(task, advance=1, loss=f"{loss:.3f}"),
            on_epoch=on_epoch,
        )
    seconds = sum(epoch.seconds for epoch in history.epochs)
    console.print(f"{name}: {history.last.accuracy:.2%} after {epochs} epochs, {seconds:.1f} s of training")
    images, labels = data.train_images[: options.batch_size], data.train_labels[: options.batch_size]

    def one_gradient() -> None:
        gradient_step(model, images, labels)
        model.zero_grad(set_to_none=True)

    memory = peak_memory(one_gradient, images.device)
    parameters = sum(p.numel() for p in model.parameters())
    return Result(name, parameters, memory, len(images), history)


def _algorithm(name: str, steps: int | None) -> Algorithm:
    algorithm = algorithm_from_name(name)
    if isinstance(algorithm, FixedStep):
        return replace(algorithm, steps=4 if steps is None else steps)
    if steps is not None:
        raise InputError(
            explain(
                f"--steps {steps} with the adaptive {algorithm.name}",
                "a fixed-step algorithm",
                "drop --steps, or choose --algorithm RK4; --rtol and --atol govern adaptive steps",
            )
        )
    return algorithm


def _device(name: str) -> torch.device:
    expectation, remedy = "cpu, cuda or cuda:INDEX of a device that is there", "run with --device cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(explain(f"--device {name} is not a device", expectation, remedy)) from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(explain(f"--device {name} is not supported by the demo", expectation, remedy))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise InputError(explain(f"--device {name}: {found}", expectation, remedy))
    return device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pynode demo",
        description="Train an ODE-net and a ResNet of the same block on images of digits, compare them in one table, "
        "check the trained gradient against SciPy (exit status 1 if it fails), and draw a picture.",
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of MNIST or Fashion-MNIST IDX files instead of the digits")
    add("--samples", type=_positive_int, metavar="N", help="train on the first N images only")
    add("--epochs", type=_positive_int, metavar="N", help="default: 7 for the digits, 3 for --data")
    add("--batch-size", type=_positive_int, default=64, metavar="N", help="images in a batch (%(default)s)")
    add("--channels", type=_positive_int, default=32, metavar="N", help="channels of the state (%(default)s)")
    add("--learning-rate", type=_positive, default=5e-3, metavar="X", help="peak of the schedule (%(default)s)")
    add("--algorithm", default="Tsit5", metavar="NAME", help="integrator: Tsit5, DP5, BS3, RK4, ... (%(default)s)")
    add("--steps", type=_positive_int, metavar="N", help="steps of a fixed-step algorithm (4)")
    add("--sensealg", default="CheckpointedAdjoint", metavar="NAME", help="how gradients are obtained (%(default)s)")
    add("--rtol", type=_positive, default=1e-3, metavar="X", help="relative tolerance of the training (%(default)s)")
    add("--atol", type=_positive, default=1e-3, metavar="X", help="absolute tolerance of the training (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of initial parameters and order of images (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:INDEX (%(default)s)")
    add("--threads", type=_positive_int, metavar="N", help="of torch; default: 1 for the digits, torch's for --data")
    add("--output", type=Path, default=Path("pynode-demo.png"), metavar="FILE", help="the picture (%(default)s)")
    add("--no-picture", action="store_true", help="draw none; matplotlib is then not needed")
    add("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    return parser


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer >= 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive finite number")
    return value
