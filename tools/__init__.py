"""What a maintainer runs: the GPU check, and the diagrams and tables of docs/."""

import utils  # noqa: F401  # first in `python -m`, before Matplotlib: see startup.py
