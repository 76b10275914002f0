"""Label Studio's run-length encoding of brush strokes (``"format": "rle"``).

A stream of bits that unpacks to the RGBA bytes of the image, row by row; what is opaque is marked.
Source: the format's description in rle-pack, https://github.com/thi-ng/umbrella: 32 bits the number
of words, 5 the bits a word less 1, four times 4 the bits a run's length less 1; then blocks: a bit
whether one word repeats, 2 which of the four lengths, the length less 1, and the word or words.
"""

from __future__ import annotations

from datamodules.annotations.entries import EntryError, show

CHANNELS = 4
DAMAGED = "its brush strokes cannot be read; export them again"


def brush_runs(encoded: object, size: tuple[int, int]) -> list[int]:
    """Unpack brush strokes to runs along the rows, of background and mask in turn.

    Nothing of the image's size is made, whatever the stream claims.

    Args:
        encoded: The list of bytes from the file.
        size: ``(height, width)`` of the image.

    Raises:
        EntryError: It is no such list, of another size, or ends early.
    """
    try:
        bits = _Bits(bytes(encoded if isinstance(encoded, list) else []))
    except (TypeError, ValueError, OverflowError) as error:
        raise EntryError(DAMAGED) from error
    words = bits.read(32)
    if words != CHANNELS * size[0] * size[1]:
        raise EntryError(
            f"its brush strokes hold {show(words)} values, the image of {size[1]} x {size[0]} has "
            f"{CHANNELS * size[0] * size[1]}; export them again"
        )
    if bits.read(5) + 1 != 8:
        raise EntryError(DAMAGED)
    lengths = [bits.read(4) + 1 for _ in range(4)]
    runs, marked = [0], False
    place = 0
    while place < words:
        repeats = bits.read(1)
        end = place + bits.read(lengths[bits.read(2)]) + 1
        if end > words:
            raise EntryError(DAMAGED)
        while place < end:
            value = bits.read(8)
            stop = end if repeats else place + 1
            # Pixels whose last value, alpha, is among those from place to stop.
            count = stop // CHANNELS - place // CHANNELS
            if count and (value > 0) != marked:
                runs.append(0)
                marked = not marked
            runs[-1] += count
            place = stop
    return runs


class _Bits:
    """Bytes, read as numbers of so many bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def read(self, count: int) -> int:
        end = self.place + count
        if end > 8 * len(self.data):
            raise EntryError(DAMAGED)
        part = int.from_bytes(self.data[self.place // 8 : (end + 7) // 8], "big")
        self.place = end
        return (part >> (-end % 8)) & ((1 << count) - 1)
