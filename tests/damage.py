"""Damage to files, for the tests of checkpoints and of runs."""

import os


def cut(path):
    """Take the last 100 bytes away."""
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path, share=0.5):
    """Flip a bit after this share of the bytes; in the middle of a checkpoint, among weights, torch.load does not notice."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 16
    path.write_bytes(content)


def replace_by_pipe(path):
    """Reading a pipe that nobody writes to would last for ever."""
    path.unlink()
    os.mkfifo(path)
