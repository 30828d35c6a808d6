"""Untrusted text for a page: every character visible, none that steers the text around it."""

# HTML drops or rewrites control characters, and UTF-8 cannot hold half a surrogate pair (which is
# how Python spells a file name that is not UTF-8): both get a character one can see.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
# These turn the direction of what follows, so that "gpj.exe" reads "exe.jpg", or break its line.
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_BREAKS = (*range(0x80, 0xA0), 0x2028, 0x2029, 0xFEFF)
_WRITTEN_OUT = {code: f"[U+{code:04X}]" for code in (*_DIRECTIONS, *_BREAKS)}
_VISIBLE = _CONTROLS | _SURROGATES | _WRITTEN_OUT


def visible(text: str) -> str:
    r"""Replace characters that a page would drop, or that would steer it; the template escapes.

    Examples
    --------
    >>> visible("photo\u202egpj.exe")
    'photo[U+202E]gpj.exe'
    >>> visible("a\x00b")
    'a␀b'
    """
    return text.translate(_VISIBLE)
