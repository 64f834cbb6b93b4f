"""Builds the soft CPU's firmware: C for the bare machine, no LiteX BIOS, but for a DRAM LiteX's own liblitedram.

`build_firmware(constants, directory)` writes the constants as `sentei.h`, compiles, and returns the ROM's words.
Addresses and the fingerprint come from the caller, which has them from the overlay's tables.
"""

from __future__ import annotations

from pathlib import Path

import litex

from sentei.gateware.tools.programs import OBJCOPY, RISCV_GCC, require, run

SOURCES = ("start.S", "main.c", "console.c", "classify.c")
LITEX = Path(litex.__path__[0]) / "soc" / "software"
DRAM_SOURCES = ("liblitedram/sdram.c", "liblitedram/accessors.c")
DRAM_FLAGS = ("-DDRAM", "-DSDRAM_TEST_DISABLE", "-Wno-error")
FLAGS = (
    *("-march=rv32i", "-mabi=ilp32", "-Os", "-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-fno-builtin", "-nostdlib", "-nostartfiles", "-static"),
    *("-ffunction-sections", "-Wl,--gc-sections", "-Wl,--build-id=none"),
)


def build_firmware(constants: dict[str, int | str], directory: Path, dram: dict[str, str] | None = None) -> list[int]:
    """Compile the firmware in `directory`; returns the ROM's 32-bit words.

    `dram`: the headers that liblitedram reads of LiteX's "generated" ones, by name, if there is a DRAM.
    """
    compiler = require(RISCV_GCC)
    literals = {name: f'"{v}"' if isinstance(v, str) else f"0x{v:08x}u" for name, v in constants.items()}
    header = "".join(f"#define {name} {literal}\n" for name, literal in literals.items())
    (directory / "sentei.h").write_text("/* Generated from the overlay's tables. */\n#pragma once\n" + header)
    here = Path(__file__).parent
    symbols = [f"-Wl,--defsym={name}={constants[name]:#x}" for name in ("ROM_BYTES", "SRAM_BASE", "SRAM_BYTES")]
    sources = [here / name for name in SOURCES]
    if dram:
        generated = directory / "generated"
        generated.mkdir(exist_ok=True)
        for name, content in dram.items():
            (generated / name).write_text(content)
        sources += [LITEX / name for name in DRAM_SOURCES]
        symbols += [*DRAM_FLAGS, *(f"-I{folder}" for folder in (here / "litex", LITEX / "include", LITEX))]
    elf, binary = directory / "firmware.elf", directory / "firmware.bin"
    script = ["-T", here / "firmware.ld"]
    run([compiler, *FLAGS, f"-I{directory}", *symbols, *script, *sources, "-lgcc", "-o", elf], directory)
    objcopy = require(OBJCOPY)
    run([objcopy, "-O", "binary", "-j", ".text", elf, binary], directory)
    code = binary.read_bytes()
    code += bytes(-len(code) % 4)
    return [int.from_bytes(code[i : i + 4], "little") for i in range(0, len(code), 4)]
