"""LZW as Go's compress/lzw writes it: least significant bit first, 8-bit literals, codes of 9 to 12 bits.

    0 … 255  literals      256  clear the table      257  end      258 …  strings met so far

Stock agents compress every stream and those packets that shrink.  We read that and never write it: our
messages are short, they are mostly names and numbers, and an agent accepts them plain.

A bomb of 12-bit codes grows some two thousandfold, so the output is capped by the caller, and the cap is
checked before each string is appended.
"""

from __future__ import annotations

from overlay.errors import MalformedError, TruncatedError

# From the format
CLEAR, END = 256, 257
WIDTH_MIN, WIDTH_MAX = 9, 12

LITERALS = [bytes((octet,)) for octet in range(256)] + [b"", b""]


def decompress_untrusted(data: bytes, *, limit: int) -> bytes:
    """What was compressed.

    Args:
        data: The codes, up to and including the end code.
        limit: Octets the result may have.

    Raises:
        MalformedError: A code nobody has defined yet, or a result longer than `limit`.
        TruncatedError: The end code is missing.
    """
    plain = bytearray()
    strings = LITERALS.copy()
    previous = b""
    width, window, held = WIDTH_MIN, 0, 0
    for octet in data:
        window |= octet << held
        held += 8
        if held < width:
            continue
        code = window & ((1 << width) - 1)
        window >>= width
        held -= width
        if code == END:
            return bytes(plain)
        if code == CLEAR:
            strings, previous, width = LITERALS.copy(), b"", WIDTH_MIN
            continue
        if code < len(strings):
            string = strings[code]
        elif code == len(strings) and previous:  # the string being defined, by the code that defines it
            string = previous + previous[:1]
        else:
            raise MalformedError(f"LZW: expected a code up to {len(strings)}, found {code}")
        if len(plain) + len(string) > limit:
            raise MalformedError(f"LZW: expected at most {limit} octets, found more")
        plain += string
        if previous and len(strings) < 1 << WIDTH_MAX:
            strings.append(previous + string[:1])
        previous = string
        if len(strings) >= 1 << width and width < WIDTH_MAX:
            width += 1
    raise TruncatedError("LZW", expected=len(data) + 1, found=len(data))
