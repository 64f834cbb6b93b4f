"""Registers of the engine: 32 bits each, one after the other from the engine's base address, 4 bytes apart.

Gateware builds its CSRs from `REGISTERS`, the driver decodes with it, the `.hwh` and the documentation list it.

A run: write `program_base`, `input_base`, `output_base`, then `doorbell`. The doorbell queues one job; the bases are
copied with it, so that they may be changed for the next job at once. The interrupt rises when a job ends and when an
error stops the engine. After an error: write 1 to `control.reset`, then start again, the program's load included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from sentei.overlay.fields import Layout

VLNV = "sentei.org:sentei:engine:1.0"  # binds the driver to the IP in a .hwh
JOB_QUEUE_DEPTH = 4


class ErrorCode(IntEnum):
    """`status.error`: why the engine stopped."""

    NONE = 0
    READ_FAILED = 1  # the bus answered a read with an error; error_address tells where
    WRITE_FAILED = 2  # likewise, a write
    BAD_INSTRUCTION = 3  # an opcode that does not exist, at instruction_pointer
    WATCHDOG = 4  # a job took more than `watchdog` cycles
    QUEUE_OVERFLOW = 5  # a doorbell was rung while the queue was full


@dataclass(frozen=True)
class Register:
    """One register. `access` is "ro" or "rw"; `layout` names its fields (none: one number of 32 bits)."""

    name: str
    access: str
    description: str
    layout: Layout | None = None
    reset: int = 0
    offset: int = field(default=0)


def _number(registers: list[Register]) -> dict[str, Register]:
    return {
        r.name: Register(r.name, r.access, r.description, r.layout, r.reset, 4 * i) for i, r in enumerate(registers)
    }


REGISTERS = _number(
    [
        Register("fingerprint", "ro", "Identity of the geometry and of the formats; a program must carry the same."),
        Register(
            "geometry",
            "ro",
            "Size of the array.",
            Layout(
                "geometry",
                ("lanes", 8, "pixels"),
                ("columns", 8, "output channels"),
                ("groups", 8, "of columns"),
                ("requantizers", 8, "result buses"),
            ),
        ),
        Register(
            "control",
            "rw",
            "Commands.",
            Layout(
                "control",
                ("reset", 1, "1: stop everything and return to the state after power-up"),
                ("clear_profile", 1, "1: forget the profile's records"),
            ),
        ),
        Register(
            "status",
            "ro",
            "State of the engine.",
            Layout(
                "status",
                ("busy", 1, "a job runs or waits"),
                ("error", 3, "ErrorCode; the engine stands still until reset"),
                ("queued", 4, "jobs in the queue, the running one included"),
                ("loading", 1, "the DMA reads main memory"),
                ("storing", 1, "the DMA writes main memory"),
                ("groups_busy", 8, "a bit for each group that works"),
            ),
        ),
        Register("program_base", "rw", "Address in main memory of the program: instructions, then its data."),
        Register("program_words", "rw", "64-bit words of instructions at program_base."),
        Register("input_base", "rw", "Address of the picture that the next job reads."),
        Register("output_base", "rw", "Address that the next job writes its result to."),
        Register(
            "doorbell",
            "rw",
            "A write queues a job.",
            Layout(
                "doorbell",
                ("entry", 16, "instruction to start at"),
                ("load", 1, "1: first load the instructions from program_base"),
            ),
        ),
        Register("completed", "ro", "Jobs ended since reset."),
        Register("instruction_pointer", "ro", "Instruction being carried out."),
        Register(
            "epochs",
            "ro",
            "Sections that the groups have passed since reset, modulo 256.",
            Layout("epochs", *((f"group{g}", 8, "of this group, if there is one") for g in range(4))),
        ),
        Register("error_address", "ro", "Bus address of the burst that failed."),
        Register("read_address", "ro", "Bus address of the last read burst."),
        Register("write_address", "ro", "Bus address of the last write burst."),
        Register("watchdog", "rw", "Cycles that a job may take; 0 for no limit.", reset=1 << 28),
        Register("job_cycles", "ro", "Cycles of the last job: since the one before it ended, or since it was alone."),
        Register("profile_count", "ro", "Records in the profile: one for each layer and group since it was cleared."),
        Register("profile_index", "rw", "Record and word to look at: record * 8 + word."),
        Register("profile_data", "ro", "The word that profile_index names."),
    ]
)

# One profile record: eight 32-bit words, written when a group ends a layer. The cycles that the group spent since its
# record before add up: steps + drain_stalls + waits + setup + idle = end - end of the record before.
PROFILE_CAUSES = ("steps", "drain_stalls", "waits", "setup", "idle")
PROFILE_WORDS = (
    "group",
    "end",  # clock cycles since the profile was cleared
    "steps",  # cycles that issued a step
    "drain_stalls",  # cycles that waited for the result bus or the write queue
    "waits",  # cycles that waited for results of other groups
    "setup",  # cycles that read headers and filled the pipeline
    "idle",  # cycles with nothing to do
    "bytes",  # main memory bytes read and written since the record before, whichever group's
)

# Registers of the interrupt controller, 4 bytes apart: those of the Xilinx AXI INTC (PG099) that pynq expects.
INTERRUPT_REGISTERS = ("isr", "ipr", "ier", "iar", "sie", "cie", "ivr", "mer")
INTERRUPT_VLNV = "xilinx.com:ip:axi_intc:4.1"

# Registers through which the firmware tells of the SoC, 4 bytes apart.
SYSTEM_REGISTERS = ("sleep", "memory")


class MemoryState(IntEnum):
    """What the firmware says of main memory after a reset, in `memory`. Until then nobody else may use it."""

    UNKNOWN = 0
    READY = 1
    FAILED = 2


MEMORY_FLASHES = max(ErrorCode) + 1  # of a board's LED when main memory has failed; for an ErrorCode: its number
