"""A walk over the tags and lengths at the head of a DICOM file, for the few that are wanted.

pydicom makes an object of every element on the way; this does not, and is several times as fast.
It knows little-endian files with a preamble and elements in order. All else is `Unusual`, and for
pydicom to read.
"""

import struct
from collections.abc import Collection

#: VRs whose length takes two bytes, and those where four follow two reserved ones (PS3.5, 7.1.2).
SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
#: JPEG and its kin, and RLE: pixels are compressed, headers are not, and have explicit VRs.
COMPRESSED = (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
MEDIA_DIRECTORY = b"1.2.840.10008.1.3.10"

#: Where elements begin: after 128 bytes of preamble and `DICM` (PS3.10, 7.1).
BEGIN = 132
TRANSFER_SYNTAX = 0x00020010
FIRST_GROUP, DELIMITERS = 0x0008, 0xFFFE
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF

_head = struct.Struct("<HH2sH").unpack_from  # group, element, VR and a short length
_long = struct.Struct("<L").unpack_from


class Unusual(Exception):
    """The file is made in a way that this module does not know."""


def scan(data: bytes, wanted: Collection[int]) -> dict[int, bytes]:
    """Return the values of top-level elements by their tag.

    Parameters
    ----------
    data : bytes
        What the file begins with, preamble included.
    wanted : collection of int
        Tags. The walk ends at the first that is larger than all of them.

    Raises
    ------
    Unusual
        If the file has to be read in another way.
    struct.error
        If the walk does not end within `data`.
    """
    explicit, position = _begin_of_dataset(data)
    found: dict[int, bytes] = {}
    before, last = (FIRST_GROUP << 16) - 1, max(wanted)
    while True:
        tag, begin, end = _element(data, position, explicit)
        if tag <= before or tag >> 16 == DELIMITERS:
            raise Unusual("elements are not in order")
        if tag > last:
            return found
        if tag in wanted:
            found[tag] = data[begin:end]
        before, position = tag, end


def _begin_of_dataset(data: bytes) -> tuple[bool, int]:
    """Tell whether VRs are explicit, and where the group of file meta information ends."""
    syntax, position = b"", BEGIN
    while data[position : position + 2] == b"\2\0":
        tag, begin, position = _element(data, position, True)
        if tag == TRANSFER_SYNTAX:
            syntax = data[begin:position].rstrip(b"\0 ")
    explicit = syntax == EXPLICIT or syntax.startswith(COMPRESSED)
    if not explicit and syntax != IMPLICIT:
        raise Unusual("another byte order, deflated, or private")
    if MEDIA_DIRECTORY in data[BEGIN:position]:
        raise Unusual("a DICOMDIR")
    letters = data[position + 4 : position + 6]
    if not explicit and letters.isalpha() and letters.isupper():
        raise Unusual("the transfer syntax is not that of the elements")
    return explicit, position


def _element(data: bytes, position: int, explicit: bool) -> tuple[int, int, int]:
    """Return the tag of an element and where its value begins and ends."""
    group, element, vr, length = _head(data, position)
    begin = position + 8
    if not explicit or group == DELIMITERS:
        (length,) = _long(data, position + 4)
    elif vr in LONG:
        (length,) = _long(data, begin)
        begin += 4
    elif vr not in SHORT:
        raise Unusual("an unknown VR")
    if length != UNDEFINED:
        end = begin + length
    elif explicit and vr != b"SQ":
        raise Unusual("of undefined length, and no sequence")
    else:
        end = _end_of_sequence(data, begin, explicit)
    return group << 16 | element, begin, end


def _end_of_sequence(data: bytes, position: int, explicit: bool) -> int:
    """Return where a sequence of undefined length ends."""
    while True:
        group, element, _, _ = _head(data, position)
        (length,) = _long(data, position + 4)
        tag, position = group << 16 | element, position + 8
        if tag == SEQUENCE_END:
            return position
        if tag != ITEM:
            raise Unusual("a sequence without items")
        if length != UNDEFINED:
            position += length
            continue
        while tag != ITEM_END:
            tag, _, position = _element(data, position, explicit)
            if tag in (ITEM, SEQUENCE_END):
                raise Unusual("an item without an end")
