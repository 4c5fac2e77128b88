"""What predict.py and metrics.py are made of."""

import utils  # noqa: F401  # first in `python -m`, before Matplotlib: see startup.py
