"""Do faults of every kind to runs on toys; print a table, and write docs/reliability.md.

``make chaos``, or ``python -m bench.chaos --kills 20 --flips 20``. Every draw is by ``--seed``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before a fork

import numpy as np
import torch

from albat_core.seeding import generator
from bench.chaos import flips, kills
from bench.chaos.outcome import Kind, Trial, table
from bench.chaos.toy import Wanted, at, carry_out, undisturbed, write_toy

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"
