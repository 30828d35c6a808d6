"""Settings of a run as a person names them: by a name, a file, and what is to differ from it."""

import re
from typing import TYPE_CHECKING

from saff.addresses import locate
from saff.errors import SettingsError
from saff.storage import NO_FILE, with_brief_retries, with_retries

if TYPE_CHECKING:
    from saff.config import Config

CHANGE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?=")
CHANGES = re.compile(rf",(?={CHANGE.pattern.replace('(', '(?:')})")


def read_config(name: str) -> "Config":
    """Read settings by name or from a file, and after it changes: ``fast,superpixel_count=400``.

    Raises
    ------
    SettingsError
        If there is no such name or file, or a setting cannot be.
    """
    from saff import config as settings  # pydantic takes longer to import than help may take

    name, *changes = CHANGES.split(name)
    if CHANGE.match(name):  # of the default
        name, changes = "default", [name, *changes]
    return settings.with_changes(_read_base(name), changes) if changes else _read_base(name)


def _read_base(name: str) -> "Config":
    from saff import config as settings

    if name in settings.NAMED:
        return settings.NAMED[name]()
    missing = f"no configuration {name!r}; known: {', '.join(settings.NAMED)}, or a JSON file"
    return settings.from_json(read_named(name, missing))


def read_named(name: str, missing: str) -> bytes:
    """Read a file that a person named, on this machine or in a store.

    Raises
    ------
    SettingsError
        With the words of ``missing``, if there is none.
    """
    fs, path = locate(name)
    with with_brief_retries(name):
        try:
            data: bytes = with_retries(fs, fs.cat_file, path)
        except NO_FILE:
            raise SettingsError(missing) from None
    return data
