"""From the sums of a few groups to 4-bit results in the activation memory."""
