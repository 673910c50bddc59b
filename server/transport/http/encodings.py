"""Content-Encoding of requests, and Accept-Encoding of answers."""

import zlib

from server.errors import InvalidRequest, TooLarge, shortened
from server.transport.http.errors import UnsupportedEncoding

__all__ = ["accepts_gzip", "decompress"]

# zlib takes both gzip and zlib ("deflate") with this.
_EITHER_FORMAT = 32 + zlib.MAX_WBITS
# What a decoder leaves over is copied, so it is given little at a time.
SLICE_BYTES = 16 * 1024
# How much is decompressed into one temporary.
PIECE_BYTES = 1024 * 1024
# bgzip starts a member every 64 KiB; nobody needs one for a few bytes.
MAX_MEMBERS = 1024


def decompress(body: bytearray, encoding: str, limit_bytes: int) -> bytearray:
    """Undo Content-Encoding, never holding more than `limit_bytes` of the result.

    Raises:
        UnsupportedEncoding: neither gzip, deflate nor identity.
        InvalidRequest: the body is not what its header says.
        TooLarge: it holds more than `limit_bytes`, or is in too many parts.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedEncoding(f"content-encoding {shortened(encoding)!r} is not known; use gzip, or none")
    plain = bytearray()
    members = 0
    # A gzip file may consist of several members, each with a decoder of its own.
    decoder = None
    try:
        for start in range(0, len(body), SLICE_BYTES):
            left = bytes(body[start : start + SLICE_BYTES])
            while left:
                if decoder is None:
                    members += 1
                    decoder = zlib.decompressobj(_EITHER_FORMAT)
                plain += decoder.decompress(left, PIECE_BYTES)
                _check(len(plain), limit_bytes, members)
                left = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                if decoder.eof:
                    decoder = None
        if decoder is not None:
            # The last piece may have been full before all of it was out.
            plain += decoder.flush()
    except zlib.error:
        raise InvalidRequest("body", f"is not {encoding}, as content-encoding says") from None
    if decoder is not None and not decoder.eof:
        raise InvalidRequest("body", f"the {encoding} data ends too early")
    _check(len(plain), limit_bytes, members)
    return plain


def _check(size: int, limit_bytes: int, members: int) -> None:
    if size > limit_bytes:
        raise TooLarge("body", "the decompressed body", actual=size, limit=limit_bytes, unit="bytes or more")
    if members > MAX_MEMBERS:
        raise TooLarge(
            "body", "the compressed body", actual=members, limit=MAX_MEMBERS, unit="gzip members or more"
        )


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header takes gzip: by name or by `*`, and not with a weight of 0."""
    weights = {}
    for entry in accept_encoding.lower().split(","):
        coding, _, parameter = entry.partition(";")
        name, _, value = parameter.partition("=")
        weights[coding.strip()] = _weight(value) if name.strip() == "q" else 1.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def _weight(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0
