"""Writes docs/registers.md from overlay/: registers, formats, codes and sizes, as gateware and software use them; and
the tables of docs/models.md from host/frontend/catalogue.py: operators and attributes; and the table of docs/boards.md
from reports/boards.json.

python docs/generate.py            write the pages
python docs/generate.py --check    exit with 1 if a committed page differs
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from types import ModuleType

from sentei.host.frontend import catalogue
from sentei.overlay import geometry as sizes
from sentei.overlay import instructions, registers
from sentei.overlay.fields import Layout
from sentei.overlay.manifest import MEMORY_MODELS

PAGE, MODELS, BOARDS = (Path(__file__).with_name(name) for name in ("registers.md", "models.md", "boards.md"))
REPORTS = Path(__file__).parents[1] / "reports"
ZOO, BUILT = (json.loads((REPORTS / name).read_text()) for name in ("zoo.json", "boards.json"))
BEGIN, END = "<!-- Made by docs/generate.py from host/frontend/catalogue.py -->\n", "<!-- end -->\n"
BEGIN_BOARDS = "<!-- Made by docs/generate.py from reports/boards.json -->\n"
PRESET = "32x32"  # whose formats are shown where they depend on the geometry


def table(columns: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """Lines of a Markdown table; `columns` are separated by |."""
    names = columns.split("|")
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    for row in rows:
        cells = [str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def comments(module: ModuleType, owner: str) -> dict[str, str]:
    """The comments at the ends of the lines of a class or a tuple: name, or quoted name, to text."""
    source = inspect.getsource(module)
    body = re.search(rf"^(?:class {owner}\b.*?:\n|{owner} = \(\n)(.*?)(?:^\S|\Z)", source, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^ {4}\"?(\w+)\"?(?:,| = \w+)\s+# (.*)$", body[1], re.MULTILINE) if body else []
    return dict(found)


def bits(offset: int, width: int) -> str:
    return f"{offset}" if width == 1 else f"{offset + width - 1}:{offset}"


def fields(layout: Layout) -> list[str]:
    """A table of a layout; numbered fields of the same kind (group0, group1, ...) share a row."""
    rows: list[list[str]] = []
    runs: list[list[tuple[str, int, int, bool, str]]] = []
    for description in layout.describe():
        kind = (description[0].rstrip("0123456789"), *description[2:])
        numbered = description[0][-1].isdigit()
        if numbered and runs and (runs[-1][0][0].rstrip("0123456789"), *runs[-1][0][2:]) == kind:
            runs[-1].append(description)
        else:
            runs.append([description])
    for run in runs:
        first, last = run[0], run[-1]
        names = f"`{first[0]}`" if len(run) == 1 else f"`{first[0]}` to `{last[0]}`, {first[2]} bits each"
        width = last[1] + last[2] - first[1]
        rows.append([names, bits(first[1], width), "signed" if first[3] else "unsigned", first[4]])
    return table("field|bits|type|meaning", rows)


def codes(enum: type[IntEnum], module: ModuleType) -> list[str]:
    texts = comments(module, enum.__name__)
    return table("value|name|meaning", ((int(code), f"`{code.name}`", texts.get(code.name, "")) for code in enum))


def register_section() -> list[str]:
    lines = ["## Registers", ""]
    lines += [
        f"The engine's VLNV is `{registers.VLNV}`. Registers have 32 bits; offsets are in bytes from the engine's base "
        "address. Fields that are not listed read as 0.",
        "",
    ]
    lines += table(
        "offset|register|access|reset|meaning",
        (
            (f"{r.offset:#04x}", f"`{r.name}`", r.access, f"{r.reset:#x}" if r.access == "rw" else "", r.description)
            for r in registers.REGISTERS.values()
        ),
    )
    for register in registers.REGISTERS.values():
        if register.layout:
            lines += [f"### `{register.name}`", "", *fields(register.layout)]
    lines += [
        "### Error codes (`status.error`)",
        "",
        *codes(registers.ErrorCode, registers),
        f"The doorbell's queue holds {registers.JOB_QUEUE_DEPTH} jobs.",
        "",
    ]
    return lines


def profile_section() -> list[str]:
    texts = comments(registers, "PROFILE_WORDS")
    words = registers.PROFILE_WORDS
    return [
        "## Profile",
        "",
        "One record for each layer and group; `profile_index` selects record * 8 + word. `steps + drain_stalls + waits "
        "+ setup + idle` are the cycles since the group's record before.",
        "",
        *table("word|name|meaning", ((i, f"`{name}`", texts.get(name, "")) for i, name in enumerate(words))),
    ]


def interrupt_section() -> list[str]:
    return [
        "## Interrupt controller",
        "",
        f"Registers of the Xilinx AXI INTC (PG099), `{registers.INTERRUPT_VLNV}`, 32 bits each.",
        "",
        *table("offset|register", ((f"{4 * i:#04x}", f"`{n}`") for i, n in enumerate(registers.INTERRUPT_REGISTERS))),
    ]


def format_section(geometry: sizes.Geometry) -> list[str]:
    lines = [
        "## Instructions",
        "",
        f"{instructions.INSTRUCTION_LOAD_WORDS * sizes.LOAD_BITS} bits each, lowest word first.",
        "",
        *fields(instructions.INSTRUCTION),
        "### Opcodes",
        "",
        *codes(instructions.Opcode, instructions),
        "### Bases",
        "",
        *table("value|name", ((int(base), f"`{base.name}`") for base in instructions.Base)),
        "### On-chip memories",
        "",
        f"Destinations of a LOAD. Sizes are those of the {PRESET} preset: bytes that one entry occupies in main "
        "memory, and entries.",
        "",
    ]
    lines += table(
        "value|name|bytes an entry|entries",
        (
            (
                int(memory),
                f"`{memory.name}`",
                instructions.load_words(memory, geometry) * sizes.LOAD_BITS // 8,
                instructions.entries(memory, geometry),
            )
            for memory in instructions.Memory
        ),
    )
    lines += [
        "## Streams",
        "",
        f"A stream word has {instructions.stream_bits(geometry)} bits with the {PRESET} preset. A job is two header "
        "words and its steps.",
        "",
    ]
    for title, layout in (
        ("First header word", instructions.HEADER0),
        ("Second header word", instructions.HEADER1),
        ("Step", instructions.STEP),
    ):
        lines += [f"### {title}", "", *fields(layout)]
    lines += [
        f"Weights follow from bit {instructions.STEP_WEIGHTS_OFFSET}: {sizes.WEIGHT_BITS} bits for each of the "
        f"group's {geometry.group_columns} columns, two's complement, column 0 lowest.",
        "",
        "## Tables",
        "",
    ]
    for title, layout in (
        ("Tile", instructions.TILE),
        ("Tap", instructions.TAP),
        (f"Mask ({PRESET} preset)", instructions.mask_layout(geometry)),
        (f"Channel ({PRESET} preset)", instructions.channel_layout(geometry)),
    ):
        lines += [f"### {title}", "", *fields(layout)]
    return lines


def size_section() -> list[str]:
    names = list(sizes.PRESETS)
    values = {name: preset.to_dict() for name, preset in sizes.PRESETS.items()}
    rows = [[f"`{size}`", *(values[name][size] for name in names)] for size in values[names[0]]]
    rows.append(["fingerprint", *(f"`{instructions.fingerprint(preset):#010x}`" for preset in sizes.PRESETS.values())])
    return [
        "## Geometry presets",
        "",
        *table("|".join(["size", *names]), rows),
        "## Memory models of the simulated SoC",
        "",
        *table("name|model", ((f"`{model.name}`", str(model).split(": ", 1)[1]) for model in MEMORY_MODELS.values())),
    ]


def page() -> str:
    """The whole page."""
    geometry = sizes.PRESETS[PRESET]
    lines = [
        "<!-- Generated by docs/generate.py from overlay/: change it there, then run `make docs`. -->",
        "",
        "# Registers and formats",
        "",
        f"Everything that gateware and software agree on, format version {instructions.FORMAT_VERSION}. "
        "[architecture.md](architecture.md) explains how the parts work together.",
        "",
        *register_section(),
        *profile_section(),
        *interrupt_section(),
        *format_section(geometry),
        *size_section(),
    ]
    return "\n".join(lines).rstrip() + "\n"


def operator_rows(operators: dict[str, catalogue.Operator]) -> list[str]:
    """A table of operators; attributes without effect are left out."""
    rows = []
    for name, operator in sorted(operators.items()):
        attributes = [f"`{key}`: {value}" for key, value in operator.attributes.items() if value != catalogue.UNUSED]
        rows.append((f"`{name}`", operator.meaning, "; ".join(attributes)))
    return table("operator|what becomes of it|attributes", rows)


def zoo_rows() -> Iterable[Iterable[object]]:
    """Those of the zoo that compile."""
    for name, row in ZOO.items():
        if row["compiles"]:
            exact = "equal" if row["rtl_exact"] else "DIFFERENT"
            arithmetic = "proven equal to float32" if row["proven"] else "exact; float32 may round otherwise"
            cycles = (f"{row['cycles']:,.0f}", f"{row['bound_cycles']:,.0f}")
            difference = row.get("largest_difference")
            yield name, arithmetic, "not executed" if difference is None else f"{difference:.2g}", exact, *cycles


def models_page() -> str:
    """docs/models.md with its tables as the catalogue has them."""
    text = MODELS.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, foot = rest.partition(END)
    lines = [
        "",
        "### ONNX's operators",
        "",
        *operator_rows(catalogue.OPERATORS),
        "Operators of constants only are computed while compiling, whatever they are.",
        "",
        "### Quantizers of QONNX, Brevitas and FINN",
        "",
        "Domains `qonnx.custom_op.general`, `onnx.brevitas` and `finn.custom_op.general`.",
        "",
        *operator_rows(catalogue.QUANTIZERS),
        "### What is refused",
        "",
        *table("what|instead", catalogue.ELSEWHERE.items()),
        "## Networks that others published",
        "",
        "Each compiled for the 32x32 array by `make zoo` ([report](../reports/zoo.json)): 20 random inputs compared "
        "with qonnx's own execution, 2 with the simulated SoC, every layer. Cycles are the engine's for one picture, "
        "beside the bound (surviving MACs / array size).",
        "",
        *table("file|arithmetic|largest difference of an output|every layer on the RTL|cycles|bound", zoo_rows()),
        "| refused | why |",
        "| --- | --- |",
        *(f"| {name} | {row['refused']} |" for name, row in ZOO.items() if not row["compiles"]),
        "",
    ]
    return head + BEGIN + "\n".join(lines) + END + foot


def boards_page() -> str:
    """docs/boards.md, with its table made anew."""
    head, _, rest = BOARDS.read_text().partition(BEGIN_BOARDS)
    foot = rest.partition(END)[2]
    built = {name: row for name, row in BUILT.items() if "seconds" in row}
    networks = sorted({network for row in built.values() for network in row["fps"]})

    def rows():
        for name, row in built.items():
            clocks = row["clocks"]["sys_clk"]
            cells = (f"{row[kind]:,} of {row['available'][kind]:,}" for kind in ("luts", "dsps", "brams"))
            speeds = (fps if isinstance(fps := row["fps"][network], float) else "" for network in networks)
            reached = f"{clocks['target_mhz']:g} ({clocks['achieved_mhz']:g})"
            yield (f"`{name}`", row["geometry"], row["macs"], reached, *cells, f"{row['seconds'] / 60:.0f}", *speeds)

    columns = "board|array|MACs|MHz, built for (reached)|LUTs|multipliers|block RAMs|minutes"
    titles = "".join(f"|{network}, pictures/s" for network in networks)
    return head + BEGIN_BOARDS + "\n".join(table(columns + titles, rows())) + END + foot


def main() -> None:
    for path, made in ((PAGE, page), (MODELS, models_page), (BOARDS, boards_page)):
        if "--check" not in sys.argv[1:]:
            path.write_text(made())
        elif not path.is_file() or path.read_text() != made():
            sys.exit(f"docs/{path.name} is out of date: run `make docs`")


if __name__ == "__main__":
    main()
