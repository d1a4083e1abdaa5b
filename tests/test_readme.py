"""The README's Python blocks run, in order, as a reader would paste them."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_blocks_run() -> None:
    torch.manual_seed(0)
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) == text.count("```python\n") >= 10
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)
    field = scope["field"]
    assert isinstance(field, torch.nn.Module)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in field.parameters())


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_each_command_stands_in_one_shell_block_under_its_heading(heading: str) -> None:
    section = README.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.M | re.S)
    assert len(blocks) == 1
    assert blocks[0].count("\n") == 1
