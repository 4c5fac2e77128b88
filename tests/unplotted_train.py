"""train.py without its dashboards, which take longer than a tiny run: python unplotted_train.py FLAGS, as of train.py."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train
from report import figures
from utils import run_cli

figures.plot_dashboard = figures.plot_loss_proportion = lambda *_: None
run_cli(train.main)
