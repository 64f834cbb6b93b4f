"""What a user can get wrong between a model file and its answer, one exception class for each kind.

    SenteiError (overlay/errors.py)
      InvalidImages          pictures whose shape, type or range the network does not accept
      ModelFileError         the path does not hold a readable ONNX model
      UnsupportedModel       the model asks for something that the array cannot compute
        UnsupportedOperator    an operator with no place in the integer network
        UnsupportedAttribute   a known operator with an attribute value, shape or constant that is not handled
        UnsupportedBitWidth    activations, weights or accumulators wider than the array's
        MissingScale           a value whose quantization is absent or not known when compiling
        InexactModel           no integer requantization provably equals the model's float arithmetic

Texts name the operator and the value at fault and end with the remedy.
"""

from sentei.overlay.errors import SenteiError


class InvalidImages(SenteiError, ValueError):
    """The pictures do not fit the network's input tensor."""


class ModelFileError(SenteiError, ValueError):
    """The path is missing, a directory, or does not hold an ONNX model."""


class UnsupportedModel(SenteiError, ValueError):
    """The model is valid but cannot be mapped to the array."""


class UnsupportedOperator(UnsupportedModel):
    """An operator, or a place for it in the graph, that has no integer counterpart."""


class UnsupportedAttribute(UnsupportedModel):
    """A handled operator with an attribute, shape or constant that is not handled."""


class UnsupportedBitWidth(UnsupportedModel):
    """More bits than the array's operands or accumulators have."""


class MissingScale(UnsupportedModel):
    """A quantization is absent, or its parameters are not constants."""


class InexactModel(UnsupportedModel):
    """The model's float arithmetic cannot be proven equal to an integer requantization."""
