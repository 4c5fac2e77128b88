"""Figures, HTML pages and printed reports: the only folder that draws."""

import utils  # noqa: F401  # first in `python -m`, before Matplotlib: see startup.py
