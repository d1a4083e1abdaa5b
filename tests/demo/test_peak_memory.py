"""Peak memory is what was held at one time."""

from __future__ import annotations

import torch

from pynode.demo.memory import peak_memory

CPU, MIB = torch.device("cpu"), 2**20


def allocate(count: int) -> torch.Tensor:
    return torch.ones(count * MIB, dtype=torch.uint8)


def test_tensors_held_together_add_up():
    def work() -> None:
        both = allocate(2), allocate(3)
        del both

    assert 5 * MIB <= peak_memory(work, CPU) < 5.1 * MIB


def test_tensors_held_one_after_the_other_do_not():
    def work() -> None:
        for count in (1, 4, 2):
            allocate(count)

    assert 4 * MIB <= peak_memory(work, CPU) < 4.1 * MIB


def test_what_was_held_before_does_not_count():
    kept = allocate(16)

    def work() -> None:
        kept[: 2 * MIB].clone()

    assert 2 * MIB <= peak_memory(work, CPU) < 2.1 * MIB


def test_memory_of_the_backward_pass_counts():
    x = torch.ones(MIB // 4, requires_grad=True)  # 1 MiB

    def work() -> None:
        torch.autograd.grad((x.exp() * x.sin()).sum(), x)

    assert peak_memory(work, CPU) >= 3 * MIB


def test_the_profilers_markers_are_kept_out_and_other_output_is_passed_on(capfd):
    import os

    peak_memory(lambda: os.write(2, b"a real message\n"), CPU)
    assert capfd.readouterr().err == "a real message\n" * 2
