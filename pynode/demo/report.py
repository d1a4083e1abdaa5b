"""What the demo measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pynode.demo.gradient_check import BOUND, TOLERANCE, GradientCheck
from pynode.demo.training import History

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


@dataclass(frozen=True)
class Result:
    """One network, trained and measured.

    Attributes
    ----------
    network : str
    parameters : int
        All trained scalars, stem and head included.
    memory : int
        Peak bytes of one forward and backward pass on ``batch`` images.
    batch : int
    history : History
    """

    network: str
    parameters: int
    memory: int
    batch: int
    history: History

    def as_json(self) -> dict[str, Any]:
        """Its row of the table, and the epochs it comes from, in plain types."""
        last = self.history.last
        return {
            "network": self.network,
            "test_accuracy": last.accuracy,
            "parameters": self.parameters,
            "forward_nfe": last.forward_nfe,
            "backward_nfe": last.backward_nfe,
            "backward_nvjp": last.backward_nvjp,
            "seconds_per_epoch": self.history.seconds_per_epoch,
            "peak_memory_bytes": self.memory,
            "epochs": [asdict(epoch) for epoch in self.history.epochs],
        }


def comparison_table(results: list[Result], title: str, device: str) -> Table:
    """One row for each network."""
    from rich import box
    from rich.table import Table

    record = "CUDA allocator's peak" if device.startswith("cuda") else "torch.profiler's record of CPU tensors"
    table = Table(
        title=title,
        caption=(
            "f: evaluations of the block in a forward or backward pass, vjp: pullbacks through it, both means of the "
            f"last epoch. Memory: peak of a forward and a backward pass on {results[0].batch} images ({record})."
        ),
        box=box.SIMPLE_HEAVY,
        padding=(0, 1, 0, 0),
    )
    table.add_column("\nnetwork")
    columns = (
        *("test\naccuracy", "\nparameters", "forward\nf", "backward\nf", "backward\nvjp"),
        *("seconds\nper epoch", "memory\nMiB"),
    )
    for column in columns:
        table.add_column(column, justify="right")
    for result in results:
        last = result.history.last
        table.add_row(
            result.network,
            f"{last.accuracy:.2%}",
            f"{result.parameters:,}".replace(",", " "),
            f"{last.forward_nfe:.1f}",
            f"{last.backward_nfe:.1f}",
            f"{last.backward_nvjp:.1f}",
            f"{result.history.seconds_per_epoch:.2f}",
            f"{result.memory / 2**20:.2f}",
        )
    return table


def check_summary(check: GradientCheck) -> Text:
    """The gradient check in a few lines, the verdict first."""
    from rich.text import Text

    julia = ""
    if check.julia is not None:
        julia = f"    d loss / d parameters    {check.julia:.1e}   adjoint equation, by the Julia backend\n"
    verdict = Text("PASS", style="bold green") if check.passed else Text("FAIL", style="bold red")
    return Text.assemble(
        "gradient of the trained ODE-net against SciPy: ",
        verdict,
        f"\n  {check.algorithm} with {check.sensealg} at {TOLERANCE:.0e}, SciPy's DOP853 at 1e-10; float64, "
        f"{check.samples} images\n",
        f"  relative error of (bound {BOUND:.0e})       against SciPy's\n",
        f"    the loss                 {check.loss:.1e}   forward solve\n",
        f"    d loss / d block input   {check.state:.1e}   adjoint equation\n",
        f"    d loss / d parameters    {check.parameters:.1e}   adjoint equation\n",
        julia,
        f"    in 3 random directions   {check.directions:.1e}   central differences of forward solves\n",
        f"    (as it was in training   {check.as_trained:.1e}   at the tolerances of the training)",
    )
