"""TIFF files that Pillow reads but does not write."""

import struct

import numpy as np

FORMATS = {"u": 1, "i": 2, "f": 3}  # SampleFormat


def tiff(pixels, photometric=1, orientation=None):
    """An uncompressed TIFF of one grey image [H, W], in the byte order of its dtype; photometric: 0 (zero is white) or 1."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape
    bits, data = 8 * pixels.dtype.itemsize, pixels.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 274: orientation, 277: 1, 278: height}
    tags |= {279: len(data), 339: FORMATS[pixels.dtype.kind]}
    entries = [(tag, value) for tag, value in tags.items() if value is not None]
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    return header + data + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def big_endian(pixels):
    return np.asarray(pixels).astype(pixels.dtype.newbyteorder(">"))
