"""Errors by kind: what a caller can handle, each with a message that says what to do.

The command line turns a :class:`SaffError` into one message and exit code 2.  Any other exception
is a defect of the code and shows its traceback.
"""


class SaffError(Exception):
    """Base of all errors that saff raises on purpose.

    A message says what came, what was expected and what to do about it.
    """


class SettingsError(SaffError, ValueError):
    """A setting or an argument that cannot work; nothing was started or changed."""


class WeightsError(SettingsError):
    """Trained weights that are missing, of another kind, or not what their checksum says."""


class RefusedAddressError(SettingsError):
    """An address that a list of images may not name."""


class StorageError(SaffError):
    """A disk or an object store that cannot be read or written, or that holds damaged data.

    What was written before stays, and nothing is written half.
    """


class ImageError(SaffError, ValueError):
    """An image that cannot be used; its own fault, not that of the storage.

    Parameters
    ----------
    kind : str
        Short name of the fault, counted in reports: ``"truncated"``, ``"unsupported"``, ...
    message : str
        What is wrong and what to do.

    Attributes
    ----------
    kind : str
        As given.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """Pickle with both arguments, so that the error crosses process borders."""
        return type(self), (self.kind, str(self))


class TrainingError(SaffError):
    """Training that cannot go on, and would not if it were repeated."""


class TrackingError(SaffError):
    """A server for experiments that does not take what a training has logged; weights are whole."""


class StalledError(SaffError):
    """A cluster that did nothing for too long; what was done before stays."""


class AddressError(OSError):
    """An address that could not be read.

    Attributes
    ----------
    reason : str
        What the store said or did; the same for all addresses to which it does so.
    status : str or int
        The store's own code, 0 without one.
    """

    def __init__(self, reason: str, status: str | int = 0, place: str = "") -> None:
        super().__init__(f"no access to {place}: {reason}" if place else reason)
        self.reason, self.status = reason, status


class UnreadableError(AddressError):
    """A store that answers, but never gives the file of one address."""


class BusyError(AddressError):
    """A store that gives no answer, or one that may differ next time.

    Attributes
    ----------
    wait : float
        Seconds after which it accepts the next request.
    """

    wait = 0.0


class SlowError(BusyError):
    """A store that sends too slowly: another try would take as long."""


def printable(text: str) -> str:
    r"""Give one line that cannot steer a terminal, whatever names of strangers it holds.

    >>> print(printable("no image at \x1b[2J ü.jpg"))
    no image at \x1b[2J ü.jpg
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
