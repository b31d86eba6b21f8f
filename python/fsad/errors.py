"""What fsad raises when the caller, not fsad, has to change something.

Every message says what was got, what was expected and what to do; the command line prints it as one
line. Each class is also the built-in (or scikit-learn-like) exception that callers would look for.
"""

import os


class FsadError(Exception):
    """Base of all errors that a user of fsad can mend."""


class InputError(FsadError, ValueError):
    """An argument, picture or setting that cannot be used."""


class NotAdaptedError(FsadError, ValueError, AttributeError):
    """A model used before it has seen normal examples (same bases as sklearn's NotFittedError)."""


class DivergedError(FsadError, RuntimeError):
    """Sparse coding or training produced numbers that are not finite or that grew without bound."""


class ModelFileError(FsadError, ValueError):
    """A model file that is damaged, foreign, or made by a newer fsad."""


def display_name(path: str | os.PathLike) -> str:
    """The name for people: bytes that are not UTF-8 and control characters as \\x.. escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
