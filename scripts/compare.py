"""Compares this checkout's programs and fingerprints with another one's, byte for byte.

    python scripts/compare.py OTHER_CHECKOUT

compiles every network of models/ for every preset, for single pictures and for batches of four, here and there. The
other checkout needs a .venv of its own. A change that is meant to change nothing can so be shown to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

BATCHES = (1, 4)
ROOT = Path(__file__).resolve().parent.parent
# Where a checkout may have them.
HOMES = ("sentei.host.compiler.compile", "sentei.host.compiler")
FRONTENDS = ("sentei.host.frontend.importer", "sentei.host.frontend")


def attribute(modules: tuple[str, ...], name: str):
    """The first of `modules` that exists has it."""
    import importlib

    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of {', '.join(modules)} has {name}")


def measure(models: Path) -> dict[str, str]:
    """Fingerprints of the presets, and SHA-256 of every program; of those that do not fit, the error's text."""
    from sentei.overlay.errors import CapacityError
    from sentei.overlay.geometry import PRESETS
    from sentei.overlay.instructions import fingerprint

    compile_network, load = attribute(HOMES, "compile_network"), attribute(FRONTENDS, "load")
    found = {f"fingerprint {name}": f"{fingerprint(geometry):08x}" for name, geometry in PRESETS.items()}
    for path in sorted(models.glob("*.onnx")):
        network = load(path)
        for name, geometry in PRESETS.items():
            for batch in BATCHES:
                try:
                    program = compile_network(network, geometry, batch=batch)
                    content = hashlib.sha256(program.to_bytes()).hexdigest()
                except CapacityError as error:
                    content = str(error)
                found[f"{path.stem} {name} batch {batch}"] = content
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--json", type=Path, help="write what this checkout gives to this file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.other)))
        return
    results = []
    for checkout in (arguments.other.resolve(), ROOT):
        command = [checkout / ".venv" / "bin" / "python", __file__, ROOT / "models", "--measure"]
        output = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    before, after = results
    different = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name}: {before.get(name)} there, {after.get(name)} here")
    if arguments.json:
        arguments.json.write_text(json.dumps(after, indent=2) + "\n")
    print(f"{len(after) - len(different)} of {len(after)} are equal")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
