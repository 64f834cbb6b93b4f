"""Pictures of any size and format as a program's input: what a pixel becomes."""

import numpy as np
import pytest
from helpers.random_networks import ModelWriter
from PIL import Image

from sentei.host.apps.pictures import read_image, read_pictures
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.program import Program

HEIGHT, WIDTH = 6, 8


def program(source, channels: int = 3, **options) -> Program:
    """A program whose input is what `source(writer)` makes of "input"."""
    writer = ModelWriter()
    weights = writer.quant(writer.constant(np.ones((2, channels, 1, 1)) * 0.5), 0.125, 4, True)
    output = writer.node("Conv", source(writer), weights)
    network = load(writer.model((1, channels, HEIGHT, WIDTH), output, 4), **options)
    return compile_network(network, PRESETS["8x8"])


def pixels(writer: ModelWriter) -> str:
    return writer.quant("input", 2.0**-8, 8, False)


@pytest.fixture
def gradient(tmp_path):
    """A picture whose columns are 0 to 255."""
    values = np.tile(np.arange(256, dtype=np.uint8), (192, 1))
    Image.fromarray(values).save(tmp_path / "gradient.png")
    return tmp_path / "gradient.png"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16"])
def test_pictures_of_every_kind_of_pixel(tmp_path, mode):
    grey = Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8))
    picture = Image.fromarray(np.full((HEIGHT, WIDTH), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture.save(path)
    assert (read_image(path, program(pixels)) == 255).all()


def test_pixels_of_sixteen_bits_lose_their_lower_half(tmp_path):
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 1300
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = read_image(tmp_path / "deep.png", program(pixels, 1))
    assert np.array_equal(found[0], np.round(values / 257))


def test_pixels_that_are_no_integers_are_refused(tmp_path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="has floating-point pixels; save it with 8 or 16 bits"):
        read_image(tmp_path / "float.tif", program(pixels))


def test_a_picture_is_made_to_fit(gradient):
    said = []
    found, names = read_pictures([gradient], program(pixels), notice=said.append)
    assert found.shape == (1, 3, HEIGHT, WIDTH) and names == ["gradient.png"]
    assert said == ["gradient.png: 256x192 pixels, resized to 8x6; --fit says how"]
    for fit in ("resize", "crop", "pad"):
        assert read_pictures([gradient], program(pixels), fit, said.append)[0].shape == (1, 3, HEIGHT, WIDTH)
    assert len(said) == 1


def test_crop_and_pad_keep_proportions(tmp_path):
    Image.fromarray(np.full((HEIGHT, 3 * WIDTH), 200, np.uint8)).save(tmp_path / "wide.png")
    crop, pad = (read_pictures([tmp_path / "wide.png"], program(pixels, 1), fit)[0][0, 0] for fit in ("crop", "pad"))
    assert (crop == 200).all()
    assert (pad[0] == 0).all() and (pad[HEIGHT // 2 - 1] == 200).all()


def channel(writer: ModelWriter, *values: float) -> str:
    return writer.constant(np.array(values, np.float32).reshape(1, -1, 1, 1))


def normalized(writer: ModelWriter) -> str:
    centred = writer.node("Sub", "input", channel(writer, 0.5, 0.4, 0.3))
    return writer.node("Div", centred, channel(writer, 0.2, 0.25, 0.3))


CONVENTIONS = {
    "fractions, signed": (lambda w: w.quant("input", 2.0**-7, 8, True), lambda p: p / 127.5 - 1),
    "fractions, four bits": (lambda w: w.quant("input", 1 / 15, 4, False), lambda p: p / 255),
    "2 x - 1 in the model": (
        lambda w: w.quant(w.node("Sub", w.node("Mul", "input", w.constant(2.0)), w.constant(1.0)), 2.0**-7, 8, True),
        lambda p: p / 255,
    ),
    "mean and deviation in the model": (lambda w: w.quant(normalized(w), 2.0**-5, 8, True), lambda p: p / 255),
    "/ 255 in the model": (
        lambda w: w.quant(w.node("Div", "input", w.constant(255.0)), 2.0**-8, 8, False),
        lambda p: p,
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_pixel_becomes_what_the_model_makes_of_it(gradient, name):
    source, meaning = CONVENTIONS[name]
    compiled = program(source)
    values = np.arange(256)
    writer = ModelWriter()
    network = load(writer_model(writer, source))
    levels = np.broadcast_to(np.array(compiled.pixels[0]), (1, 3, 1, 256))
    floats = network.model_input(levels)[0, 0, 0]
    step = np.diff(np.unique(floats)).max()
    assert np.abs(floats - meaning(values)).max() <= 0.51 * step or name == "fractions, signed"
    assert Program.from_bytes(compiled.to_bytes()).pixels == compiled.pixels


def writer_model(writer: ModelWriter, source):
    weights = writer.quant(writer.constant(np.ones((2, 3, 1, 1)) * 0.5), 0.125, 4, True)
    return writer.model((1, 3, 1, 256), writer.node("Conv", source(writer), weights), 4)


def test_a_model_that_is_normalized_elsewhere_takes_no_pictures(gradient):
    outside = program(lambda w: w.quant("input", 2.0**-5, 8, True))
    with pytest.raises(InputError, match=r"by numbers that the model does not have; give a .npy file .* -128 to"):
        read_image(gradient, outside)
    with pytest.raises(InputError, match="the network takes 2 channels, not 1 or 3"):
        read_image(gradient, program(pixels, 2))
