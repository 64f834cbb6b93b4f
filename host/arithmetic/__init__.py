"""The arithmetic between an integer sum and a quantizer: in float32 as the model executes it, and in real numbers as it
is meant."""
