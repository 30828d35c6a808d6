"""Errors that are the caller's to mend: one line that says what came, what to do; exit code 2."""


class SettingsError(ValueError):
    """A setting, an input or an output that cannot work; nothing was started or changed."""


class WeightsError(SettingsError):
    """Trained weights that are missing, of another kind, or not what their checksum says."""


class StorageError(SettingsError):
    """A storage with no space left; what was written before stays, nothing is written half."""


def printable(text: str) -> str:
    r"""Give one line that cannot steer a terminal, whatever names of strangers it holds.

    >>> print(printable("no image at \x1b[2J ü.jpg"))
    no image at \x1b[2J ü.jpg
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
