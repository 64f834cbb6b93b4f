"""A terminal on the firmware's serial port."""

from sentei.driver import Simulator

LIMIT_CYCLES = 20_000_000
SLICE_CYCLES = 10_000
TYPING_CYCLES = 1_000


class Terminal:
    """Types lines and reads what comes until the next prompt."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self.greeting = self.wait()

    def wait(self) -> str:
        said = b""
        for _ in range(LIMIT_CYCLES // SLICE_CYCLES):
            self.simulator.run(SLICE_CYCLES)
            said += self.simulator.uart()
            if said.endswith(b"> "):
                return said.removesuffix(b"> ").decode().replace("\r\n", "\n")
        raise AssertionError(f"no prompt within {LIMIT_CYCLES} cycles: {said!r}")

    def type(self, line: str) -> str:
        """What follows the line's own echo."""
        for character in line:  # as fast as the firmware takes them
            self.simulator.send_uart(character.encode())
            self.simulator.run(TYPING_CYCLES)
        self.simulator.send_uart(b"\r")
        return self.wait().removeprefix(line + "\n")
