"""Writes the hardware handoff (`.hwh`) that pynq parses: the engine, the interrupt controller, how they are wired.

Vivado would write one from a block design; here it comes from the register tables. Only what pynq needs is in it:

    processing_system7 --M_AXI_GP0--> engine.s_axi          registers of overlay.registers, with their fields
                      `-------------> interrupts.s_axi      Xilinx AXI INTC
    engine.irq --> interrupts.intr, interrupts.irq --> processing_system7.IRQ_F2P

A board's processing system is described as a Zynq's whatever the host is: pynq wants one, and the simulated SoC's host
stands in its place.
"""

from __future__ import annotations

from math import ceil
from xml.etree import ElementTree

from sentei.overlay.registers import INTERRUPT_REGISTERS, INTERRUPT_VLNV, REGISTERS, VLNV

ENGINE_NAME = "engine"
INTERRUPTS_NAME = "interrupts"
SYSTEM_NAME = "sentei"
PAGE_BYTES = 0x800  # address range of each IP
IO_PLL_MHZ = 1000
_AXI_VLNV = "xilinx.com:interface:aximm:1.0"
_ACCESS = {"ro": "read-only", "rw": "read-write"}
_INTERRUPT_DESCRIPTIONS = {
    "isr": "Interrupts that are pending, enabled or not.",
    "ipr": "Interrupts that are pending and enabled.",
    "ier": "Interrupts that are enabled.",
    "iar": "Write 1: forget the pending interrupt.",
    "sie": "Write 1: enable the interrupt.",
    "cie": "Write 1: disable the interrupt.",
    "ivr": "Number of the pending, enabled interrupt with the lowest number.",
    "mer": "Bit 0: drive the output. Bit 1: take hardware's interrupts.",
}


def hardware_description(engine_base: int, interrupts_base: int, clock_hz: int) -> str:
    """XML text of the `.hwh`. Addresses are those of the registers as the host sees them."""
    root = ElementTree.Element("EDKSYSTEM", EDWVERSION="1.2", VIVADOVERSION="none")
    _add(root, "SYSTEMINFO", NAME=SYSTEM_NAME, ARCH="zynq", DEVICE="none", PACKAGE="none", SPEED="none")
    _add(root, "EXTERNALPORTS")
    _add(root, "EXTERNALINTERFACES")
    modules = _add(root, "MODULES")
    _add_processing_system(modules, {ENGINE_NAME: engine_base, INTERRUPTS_NAME: interrupts_base}, clock_hz)

    engine = _add_ip(modules, ENGINE_NAME, "engine", VLNV)
    for register in REGISTERS.values():
        fields = register.layout.fields.values() if register.layout else ()
        described = [(field.name, field.offset, field.width, field.description) for field in fields]
        _add_register(engine, register.name, register.offset, register.access, register.description, described)
    _connect(modules, ENGINE_NAME, "irq", "O", "LEVEL_HIGH", INTERRUPTS_NAME, "intr")

    interrupts = _add_ip(modules, INTERRUPTS_NAME, "axi_intc", INTERRUPT_VLNV)
    for index, name in enumerate(INTERRUPT_REGISTERS):
        _add_register(interrupts, name.upper(), 4 * index, "rw", _INTERRUPT_DESCRIPTIONS[name], [])
    _connect(modules, INTERRUPTS_NAME, "intr", "I", "EDGE_RISING", ENGINE_NAME, "irq")
    _connect(modules, INTERRUPTS_NAME, "irq", "O", "LEVEL_HIGH", "processing_system7_0", "IRQ_F2P")
    _connect(modules, "processing_system7_0", "IRQ_F2P", "I", "LEVEL_HIGH", INTERRUPTS_NAME, "irq")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add(parent, tag: str, **attributes: object):
    return ElementTree.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})


def _add_properties(parent, **properties: object) -> None:
    for name, value in properties.items():
        _add(parent, "PROPERTY", NAME=name, VALUE=value)


def _add_processing_system(modules, bases: dict[str, int], clock_hz: int) -> None:
    module = _add(
        modules,
        "MODULE",
        INSTANCE="processing_system7_0",
        FULLNAME="/processing_system7_0",
        MODTYPE="processing_system7",
        VLNV="xilinx.com:ip:processing_system7:5.5",
        IS_PL="FALSE",
    )
    parameters = _add(module, "PARAMETERS")
    clock_mhz = clock_hz / 1e6
    # pynq 4.0.0 reads Zynq-7000's clock there, too.
    values: dict[str, object] = {"PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ": clock_mhz}
    for clock in range(4):
        divisor = ceil(IO_PLL_MHZ / clock_mhz) if clock == 0 else 1
        values[f"PCW_FPGA_FCLK{clock}_ENABLE"] = int(clock == 0)
        values[f"PCW_FCLK{clock}_PERIPHERAL_DIVISOR0"] = divisor
        values[f"PCW_FCLK{clock}_PERIPHERAL_DIVISOR1"] = 1
        values[f"PCW_FCLK{clock}_PERIPHERAL_CLKSRC"] = "IO PLL"
    for name, value in values.items():
        _add(parameters, "PARAMETER", NAME=name, VALUE=value)
    _add(module, "PORTS")
    interfaces = _add(module, "BUSINTERFACES")
    _add(interfaces, "BUSINTERFACE", NAME="M_AXI_GP0", TYPE="MASTER", VLNV=_AXI_VLNV, BUSNAME="gp0", DATAWIDTH=32)
    memory_map = _add(module, "MEMORYMAP")
    for name, base in bases.items():
        _add(
            memory_map,
            "MEMRANGE",
            ADDRESSBLOCK="reg0",
            BASENAME="C_BASEADDR",
            BASEVALUE=f"{base:#010X}".replace("0X", "0x"),
            HIGHNAME="C_HIGHADDR",
            HIGHVALUE=f"{base + PAGE_BYTES - 1:#010X}".replace("0X", "0x"),
            INSTANCE=name,
            IS_DATA="TRUE",
            IS_INSTRUCTION="TRUE",
            MASTERBUSINTERFACE="M_AXI_GP0",
            MEMTYPE="REGISTER",
            SLAVEBUSINTERFACE="s_axi",
        )


def _add_ip(modules, name: str, kind: str, vlnv: str):
    """Adds a module with one register port; returns where its registers go."""
    module = _add(
        modules,
        "MODULE",
        INSTANCE=name,
        FULLNAME=f"/{name}",
        MODTYPE=kind,
        VLNV=vlnv,
        IPTYPE="PERIPHERAL",
        IS_PL="TRUE",
    )
    blocks = _add(module, "ADDRESSBLOCKS")
    block = _add(blocks, "ADDRESSBLOCK", NAME="reg0", INTERFACE="s_axi", USAGE="register", ACCESS="", RANGE=PAGE_BYTES)
    _add(module, "PARAMETERS")
    _add(module, "PORTS")
    interfaces = _add(module, "BUSINTERFACES")
    _add(interfaces, "BUSINTERFACE", NAME="s_axi", TYPE="SLAVE", VLNV=_AXI_VLNV, BUSNAME="gp0", DATAWIDTH=32)
    return _add(block, "REGISTERS")


def _add_register(registers, name: str, offset: int, access: str, description: str, fields: list[tuple]) -> None:
    register = _add(registers, "REGISTER", NAME=name)
    _add_properties(
        register,
        DESCRIPTION=description,
        ADDRESS_OFFSET=f"{offset:#x}",
        ACCESS=_ACCESS[access],
        IS_ENABLED="true",
        RESET_VALUE="0x0",
        SIZE=32,
    )
    parent = _add(register, "FIELDS") if fields else None
    for field_name, bit, width, field_description in fields:
        field = _add(parent, "FIELD", NAME=field_name)
        _add_properties(field, DESCRIPTION=field_description, BIT_OFFSET=bit, BIT_WIDTH=width, ACCESS=_ACCESS[access])


def _connect(modules, name: str, port: str, direction: str, sensitivity: str, other: str, other_port: str) -> None:
    ports = next(module for module in modules if module.get("INSTANCE") == name).find("PORTS")
    signal = _add(ports, "PORT", NAME=port, DIR=direction, SIGIS="INTERRUPT", SENSITIVITY=sensitivity)
    connections = _add(signal, "CONNECTIONS")
    _add(connections, "CONNECTION", INSTANCE=other, PORT=other_port)
