"""Do faults of every kind to runs on toys; print a table, and write docs/reliability.md.

``make chaos``, or ``python -m bench.chaos --kills 20 --flips 20``. Every draw is by ``--seed``.
"""

import os
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before a fork


PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"
