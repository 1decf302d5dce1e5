"""Numbers and base64 without surprises: one accepted spelling for every value.

`int()` reads `1_000`, ` 7 `, `٣` and `007`; `b64decode(validate=True)` reads `AB==`, whose last bits are
not zero. Two spellings of one value mean two readers can disagree about signed text, so the readers here
accept only the spelling our writers produce and raise ValueError for everything else.
"""

from __future__ import annotations

import binascii
import re

MAX_INT = 2**63 - 1

_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,18}")
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decode_decimal(text: bytes) -> int:
    """ASCII decimal without sign or leading zeros, 0..2^63-1. Raises ValueError."""
    if not _DECIMAL.fullmatch(text) or (value := int(text)) > MAX_INT:
        raise ValueError(f"{text[:24]!r} is not a decimal number from 0 to 2^63-1 without leading zeros")
    return value


def encode_base64(data: bytes) -> bytes:
    """Standard base64 with padding (RFC 4648, section 4), on one line."""
    return binascii.b2a_base64(data, newline=False)


def decode_base64(text: bytes) -> bytes:
    """Standard base64 with padding and zero trailing bits (RFC 4648, sections 3.3 and 3.5). Raises ValueError."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"not standard base64: {error}") from None
    if encode_base64(data) != text:  # strict_mode lets non-zero trailing bits through
        raise ValueError("not standard base64: bits after the last byte are not zero")
    return data


def decode_any_base64(text: bytes) -> bytes:
    """Standard or URL-safe base64 (RFC 4648, section 5), never both in one text. Raises ValueError."""
    if b"-" in text or b"_" in text:
        if b"+" in text or b"/" in text:
            raise ValueError("mixes standard and URL-safe base64")
        text = text.translate(_FROM_URL_SAFE)
    return decode_base64(text)
