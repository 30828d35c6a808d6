"""Templates of HTML pages that hold all that they show, and escape all text put into them."""

import base64
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def _source_hash(script: str) -> str:
    """The content security policy's name for exactly this script."""
    digest = hashlib.sha256(str(script).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@lru_cache(maxsize=2)
def load_template(name: str) -> "jinja2.Template":
    """Template of a page, which escapes all text that is put into it."""
    import jinja2  # not at the top: most commands draw no page

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("saff"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source_hash"] = _source_hash
    return environment.get_template(name)
