"""The Julia package in the wheel: ``juliaenv/`` becomes ``pynode/juliaenv/``, and ``juliapkg.json`` says so.

juliapkg reads paths relative to the file they stand in: ``../juliaenv`` in a checkout, ``juliaenv`` once installed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class JuliaPackage(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        declared = json.loads((root / "pynode" / "juliapkg.json").read_text())
        declared["packages"]["PyNode"]["path"] = "juliaenv"
        self.folder = tempfile.TemporaryDirectory()
        written = Path(self.folder.name) / "juliapkg.json"
        written.write_text(json.dumps(declared, indent=4) + "\n")
        build_data["force_include"][str(written)] = "pynode/juliapkg.json"
        # Named one by one: a developer's Manifest.toml stays at home.
        for part in ("Project.toml", "src", "ext"):
            build_data["force_include"][str(root / "juliaenv" / part)] = f"pynode/juliaenv/{part}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.folder.cleanup()
