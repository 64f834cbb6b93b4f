"""Random QONNX networks that fit an engine, and ones whose weights do not fit on chip."""

import numpy as np
from helpers.random_networks import ModelWriter, random_model

from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.errors import CapacityError

LIMIT_CYCLES = 2_000_000  # more than any of these takes


def fitting_network(seed, geometry):
    """The first of the seed's models that fits: (model, network, program, description)."""
    for attempt in range(20):
        model, description = random_model(10_000 + 100 * seed + attempt)
        network = load(model)
        try:
            return model, network, compile_network(network, geometry), f"attempt {attempt}: {description}"
        except CapacityError as error:
            print(f"seed {seed}, attempt {attempt}: {error}")
    raise AssertionError(f"none of seed {seed}'s networks fits {geometry}")


def layered_model(seed, kind):
    """Convolutions with so many weights that SMALL_STREAMS cannot hold them all, some with few enough to stay.

    kind "ahead": the largest run fits into half of the stream memory, "single": it does not.
    """
    random = np.random.default_rng([seed, len(kind)])
    writer = ModelWriter()
    channels, height, width = int(random.integers(1, 5)), int(random.integers(3, 9)), int(random.integers(3, 9))
    shape = (2, channels, height, width)
    bits = int(random.choice([4, 8]))
    current = writer.quant("input", 2.0**-4, bits, bool(random.random() < 0.5))
    most = 6 if kind == "ahead" else 20
    earlier = None
    for number in range(int(random.integers(4, 9))):
        kernel = 3 if number % 2 else int(random.choice([1, 3]))
        outputs = int(random.integers(most // 2, most + 1)) * 2
        if earlier is not None and random.random() < 0.4:
            outputs = earlier[1]
        levels = random.integers(-8, 8, (outputs, channels, kernel, kernel))
        levels = levels * (random.random(levels.shape) < (0.15 if number == 2 else 1.0))
        weights = writer.quant(writer.constant(levels / 8), 0.125, 4, True)
        name = writer.node("Conv", current, weights, pads=[kernel // 2] * 4)
        name = writer.quant(writer.node("Relu", name), 2.0, 4, False)
        if earlier is not None and earlier[1] == outputs:
            name = writer.quant(writer.node("Add", name, earlier[0]), 2.0, 4, False)
        earlier = (current, channels) if number else None  # not the input, which has another scale
        current, channels = name, outputs
    if random.random() < 0.5:
        levels = random.integers(-8, 8, (5, channels, 1, 1))
        current = writer.node("Conv", current, writer.quant(writer.constant(levels / 8), 0.125, 4, True))
    return writer.model(shape, current, 4)
