"""Area of the engine on an ECP5, block by block, as yosys maps it. Nothing is placed or routed.

    python -m sentei.boards.ecp5.area                        the whole engine, in some minutes
    python -m sentei.boards.ecp5.area --only array           one block
    python -m sentei.boards.ecp5.area --technology portable  with the array as plain Verilog, to compare

The engine is cut at the borders of its modules and every part is synthesised by itself: so each cell has an owner, and
logic that could be merged across a border is not. Parts of one name (groups, requantizers, copies of the memory) are
synthesised once and counted as often as they occur. The array has the multipliers for itself, other parts get none.

A LUT is a LUT4 or half a CCU2C. Not among the LUTs: a DPR16X4 takes 6 (4 of memory, 2 to address it), and nextpnr
spends 4 (2 CCU2Cs) on the two ends of each carry chain. `-no-rw-check` means that a word that is read in the cycle in
which it is written may come out as anything: nobody uses such a word here, so yosys need not build bypasses.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from litex.soc.interconnect import csr_bus
from migen import If, Module
from migen.fhdl import verilog
from migen.fhdl.structure import _Fragment
from migen.fhdl.tools import list_signals, list_special_ios, list_targets

from sentei.boards.ecp5.flow import SYNTHESIS
from sentei.boards.ecp5.presets import WHOLE
from sentei.gateware.engine.engine import Engine
from sentei.gateware.technologies.technology import ECP5_85F, PORTABLE, Technology
from sentei.gateware.tools.yowasp import yosys
from sentei.overlay.geometry import Geometry

DEVICE = "LFE5U-85F"
DEVICE_CELLS = {"luts": 83640, "ffs": 83640, "multipliers": 156, "memories": 208}
CELLS = {"ffs": "TRELLIS_FF", "multipliers": "MULT18X18D", "memories": "DP16KD", "lut_memories": "TRELLIS_DPR16X4"}
COLUMNS = {
    "luts": "LUT",
    "chains": "chains",
    "ffs": "FF",
    "multipliers": "MULT18X18D",
    "memories": "EBR",
    "lut_memories": "DPR16X4",
}
REST = "registers and glue"


@dataclass
class Part:
    """What one module owns of the engine, without the blocks inside it; `cells` of one of its `count` copies."""

    name: str
    fragment: _Fragment
    count: int = 1
    ports: set = field(default_factory=set)
    cells: dict[str, int] = field(default_factory=dict)


def blocks_of(engine: Engine) -> list[tuple[str, Module]]:
    """Blocks by name, each before the block that contains it."""
    core = engine.core
    ports = core.memory.ports
    groups = len(core.groups)
    blocks = []
    for group in core.groups:
        blocks += [("array", group.array), ("aligner", group.aligner), ("group control", group)]
    blocks += [("requantizer", requantizer) for requantizer in core.requantizers]
    blocks += [("activation memory of a group", port) for port in ports[:groups]]
    blocks += [("activation memory of a requantizer", port) for port in ports[groups:]]
    blocks += [
        ("activation memory's arbiter", core.memory),
        ("loader", core.loader),
        ("storer", core.storer),
        ("sequencer", core.sequencer),
        ("profile", core.profile),
        ("DMA reader", engine.reader),
        ("DMA writer", engine.writer),
    ]
    return blocks


def cut(top: Module, blocks: list[tuple[str, Module]], ports: set) -> list[Part]:
    """`top`, whose ports are `ports`, as parts: one for each of `blocks`, and the rest.

    A statement belongs to the innermost block that made it; a reset that covers several blocks is divided among them.
    """
    whole = top.get_fragment()
    taken: set[int] = set()
    parts = []
    for name, module in [*blocks, (REST, top)]:
        fragment = whole if module is top else module._fragment
        own = _Fragment(
            [statement for statement in fragment.comb if id(statement) not in taken],
            {domain: [s for s in statements if id(s) not in taken] for domain, statements in fragment.sync.items()},
            {special for special in fragment.specials if id(special) not in taken},
        )
        taken |= {id(item) for items in (own.comb, own.specials, *own.sync.values()) for item in items}
        parts.append(Part(name, own))
    *owners, rest = parts
    targets = [list_targets(part.fragment) for part in owners]
    for domain, statements in rest.fragment.sync.items():
        for number, statement in enumerate(statements):
            if isinstance(statement, If) and any(theirs & list_targets(statement) for theirs in targets):
                for part, theirs in zip(owners, targets, strict=True):
                    part.fragment.sync.setdefault(domain, []).append(
                        If(statement.cond, *[reset for reset in statement.t if list_targets(reset) & theirs])
                    )
                kept = [reset for reset in statement.t if not any(list_targets(reset) & theirs for theirs in targets)]
                statements[number] = If(statement.cond, *kept)
    signals = [list_signals(p.fragment) | list_special_ios(p.fragment, True, True, True) for p in parts]
    uses = Counter(signal for group in (*signals, ports) for signal in group)
    for part, theirs in zip(parts, signals, strict=True):
        part.ports = {signal for signal in theirs if uses[signal] > 1}
    return parts


def parts_of(geometry: Geometry, technology: Technology) -> list[Part]:
    """The engine with its registers on a bus, cut into parts; the first part of a name stands for all of that name."""
    top = Module()
    top.submodules.engine = engine = Engine(geometry, technology)
    top.submodules.bank = bank = csr_bus.CSRBank(engine.get_csrs(), bus=csr_bus.Interface(data_width=32))
    bus = [engine.bus.aw, engine.bus.w, engine.bus.b, engine.bus.ar, engine.bus.r, bank.bus]
    ports = {engine.irq, *(signal for record in bus for signal in record.flatten())}
    parts: dict[str, Part] = {}
    for part in cut(top, blocks_of(engine), ports):
        if part.name in parts:
            parts[part.name].count += 1
        else:
            parts[part.name] = part
    return list(parts.values())


def synthesise(part: Part, directory: Path) -> dict[str, int]:
    """Cells of one copy of `part`, by the names in COLUMNS."""
    directory.mkdir(parents=True, exist_ok=True)
    text = str(verilog.convert(part.fragment, ios=part.ports, name="part"))
    (directory / "part.v").write_text("\n".join(line for line in text.splitlines() if not line.startswith("//")))
    options = "" if part.name == "array" else " -nodsp"
    yosys(f"read_verilog part.v; {SYNTHESIS}{options} -top part -json part.json", directory)
    netlist = json.loads((directory / "part.json").read_text())
    return count_cells(netlist["modules"]["part"]["cells"].values())


def count_cells(cells) -> dict[str, int]:
    cells = list(cells)
    kinds = Counter(cell["type"] for cell in cells)
    carry = [cell["connections"] for cell in cells if cell["type"] == "CCU2C"]
    carries = {bit for connections in carry for bit in connections["COUT"]}
    chains = sum(not carries & set(connections["CIN"]) for connections in carry)
    luts = kinds["LUT4"] + 2 * kinds["CCU2C"]
    return {"luts": luts, "chains": chains} | {column: kinds[cell] for column, cell in CELLS.items()}


def table(parts: list[Part]) -> str:
    """One line a part, all copies together, then the sum and its share of the device."""
    width = max(len(part.name) for part in parts)
    lines = ["".join([f"{'block':{width}} copies", *(f"{title:>11}" for title in COLUMNS.values())])]
    total: Counter = Counter()
    for part in parts:
        total.update({column: part.count * cells for column, cells in part.cells.items()})
        lines.append(
            f"{part.name:{width}} {part.count:6}"
            + "".join(f"{part.count * part.cells[column]:11}" for column in COLUMNS)
        )
    lines.append(f"{'sum':{width}} {'':6}" + "".join(f"{total[column]:11}" for column in COLUMNS))
    shares = (f"{total[c] / DEVICE_CELLS[c]:11.0%}" if c in DEVICE_CELLS else f"{'':11}" for c in COLUMNS)
    lines.append(f"{'of an ' + DEVICE:{width}} {'':6}" + "".join(shares))
    return "\n".join(lines)


def main() -> None:
    names = ["array", "aligner", "group control", "requantizer"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--technology", default="ecp5", choices=["ecp5", "portable"], help="cells of the array")
    parser.add_argument("--only", metavar="BLOCK", action="append", help=f"{', '.join(names)} ...; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--output", default="build/area", help="directory for Verilog, netlists and logs")
    arguments = parser.parse_args()
    parts = parts_of(WHOLE, ECP5_85F if arguments.technology == "ecp5" else PORTABLE)
    if arguments.only:
        unknown = set(arguments.only) - {part.name for part in parts}
        if unknown:
            parser.error(f"BLOCK must be one of {', '.join(part.name for part in parts)}, not {', '.join(unknown)}")
        parts = [part for part in parts if part.name in arguments.only]
    for part in parts:
        part.cells = synthesise(part, Path(arguments.output).resolve() / part.name.replace(" ", "-"))
        print(f"{part.name}: {part.cells['luts']} LUTs", flush=True)
    print(table(parts))
    if arguments.json:
        report = {
            "device": DEVICE,
            "technology": arguments.technology,
            "geometry": WHOLE.to_dict(),
            "synthesis": SYNTHESIS,
            "blocks": {part.name: {"copies": part.count, "cells_of_one": part.cells} for part in parts},
        }
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
