"""Find a back end by its name, or a user's own by ``package.module:factory``."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, TypeVar

from saff.errors import SettingsError

B = TypeVar("B")


def load(kind: str, name: str, known: Mapping[str, Callable[[], B]]) -> B:
    """Make the back end called ``name``.

    Parameters
    ----------
    kind : str
        What it is for, as error messages say it: ``"saliency"``.
    name : str
        A key of ``known``, or ``package.module:factory`` where ``factory()`` gives the back end.
    known : mapping of str to callable
        The built-in factories.

    Returns
    -------
    back_end : object
        Callable on an image, as the kind's protocol says.

    Raises
    ------
    SettingsError
        If the name is unknown, the module or factory is missing, or what it gives is not callable.
    """
    if name in known:
        return known[name]()
    module_name, colon, factory_name = name.partition(":")
    if not colon:
        raise SettingsError(
            f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}, or your own as "
            "package.module:factory"
        )
    try:
        factory: Any = getattr(import_module(module_name), factory_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(f"{kind} {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise SettingsError(
            f"{kind} {name!r} is of type {type(factory).__name__}, expected a factory"
        )
    back_end: B = factory()
    if not callable(back_end):
        raise SettingsError(f"{kind} {name!r} gave {type(back_end).__name__}, expected a callable")
    return back_end


def refuse_code(name: str, allowed: Collection[str], where: str) -> None:
    """Refuse a name that a stored file gives and that would import code, unless it is allowed.

    Parameters
    ----------
    name : str
        A back end's or a network's name.
    allowed : collection of str
        Modules that the caller trusts.
    where : str
        The file that holds the name, for the message.

    Raises
    ------
    SettingsError
        If the name is ``package.module:factory`` of another module; nothing was imported.
    """
    module, colon, _ = name.partition(":")
    if colon and module not in allowed:
        raise SettingsError(
            f"{where} names {name!r}, which is code that would be imported and run; if you trust "
            f"that module, allow it with --allow-code {module}"
        )


def modules_of(*names: str) -> list[str]:
    """Modules of the names that are ``package.module:factory``.

    >>> modules_of("vgg16", "own.networks:small")
    ['own.networks']
    """
    return [name.partition(":")[0] for name in names if ":" in name]


def identity(back_end: object) -> str:
    """Say which weights a back end holds: its ``digest`` attribute, or "" where it has none."""
    return str(getattr(back_end, "digest", ""))
