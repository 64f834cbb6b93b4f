"""Errors that a user can cause or must act on. Each text says what is wrong, with the value, and then the remedy."""


class SenteiError(Exception):
    """Base of every error that Sentei raises on purpose."""


class GeometryError(SenteiError, ValueError):
    """A geometry breaks one of its rules."""


class ProgramError(SenteiError, ValueError):
    """A program file cannot be used: damaged, of another version, or for another geometry."""


class CapacityError(SenteiError, ValueError):
    """A network needs more of a memory than the geometry has."""


class BuildError(SenteiError):
    """An overlay cannot be built; the text carries what the tool said."""


class ToolMissingError(SenteiError):
    """A program that a build needs is not installed, or does not work."""


class InputError(SenteiError, ValueError):
    """A picture or an argument has the wrong shape, type or range."""
