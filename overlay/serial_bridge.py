"""What both ends of a board's serial port must agree on."""

BAUD = 1_000_000
SIMULATED_PACKET_CYCLES = 100_000  # after which a simulated SoC forgets half a packet; a board waits for 0.1 s
