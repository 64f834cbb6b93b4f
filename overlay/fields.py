"""Bit fields: one description from which gateware slices signals and software packs integers.

A `Layout` is a list of fields from bit 0 upwards, without holes:

    Layout("tile", ("tap", 16), ("input", 16), ("output", 16))

         47          32 31          16 15           0
        |    output    |     input    |     tap      |
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """`width` bits at bit `offset` of a word; two's complement if `signed`."""

    name: str
    width: int
    offset: int
    signed: bool = False
    description: str = ""


class Layout:
    """Named bit fields of a word. Each specification is (name, width[, description]); a negative width is signed."""

    def __init__(self, name: str, *specifications: tuple):
        self.name = name
        self.fields: dict[str, Field] = {}
        offset = 0
        for field_name, width, *description in specifications:
            self.fields[field_name] = Field(field_name, abs(width), offset, width < 0, *description)
            offset += abs(width)
        self.width = offset

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]

    def pack(self, **values: int) -> int:
        """Integer that holds `values`; fields not named are 0. Raises ValueError for a value out of range."""
        word = 0
        for name, value in values.items():
            field = self.fields[name]
            low, high = (-(1 << (field.width - 1)), 1 << (field.width - 1)) if field.signed else (0, 1 << field.width)
            if not low <= value < high:
                raise ValueError(f"{self.name}.{name} must be {low} to {high - 1}, not {value!r}")
            word |= (int(value) & ((1 << field.width) - 1)) << field.offset
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """Value of every field of `word`."""
        values = {}
        for field in self.fields.values():
            value = (int(word) >> field.offset) & ((1 << field.width) - 1)
            if field.signed and value >> (field.width - 1):
                value -= 1 << field.width
            values[field.name] = value
        return values

    def bits(self) -> list[tuple[str, int, int, bool]]:
        """(name, offset, width, signed) of every field, for fingerprints."""
        return [(f.name, f.offset, f.width, f.signed) for f in self.fields.values()]

    def describe(self) -> list[tuple[str, int, int, bool, str]]:
        """(name, offset, width, signed, description) of every field, for documentation."""
        return [(f.name, f.offset, f.width, f.signed, f.description) for f in self.fields.values()]
