"""Words by the names of their fields: Migen Records made from the overlay's Layouts."""

from migen.genlib.record import Record

from sentei.overlay.fields import Layout


def record_of(layout: Layout, reset_less: bool = False) -> Record:
    """A word of `layout`; `raw_bits()` of it is the whole word, field by field from the lowest bit up."""
    fields = [(field.name, (field.width, field.signed)) for field in layout.fields.values()]
    return Record(fields, name=layout.name, reset_less=reset_less)


def fields_of(module, layout: Layout, word) -> Record:
    """A Record that shows the fields of `word`; the statements that drive it are added to `module`."""
    shown = record_of(layout)
    for field in layout.fields.values():
        module.comb += getattr(shown, field.name).eq(word[field.offset : field.offset + field.width])
    return shown
