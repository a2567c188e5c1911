"""Do faults of every kind to runs on toys; print a table, and write it to docs/reliability.md.

``make chaos``, or ``python -m bench.chaos --kills 20 --flips 20``. Every draw is by ``--seed``.
"""

import os
import sys
import tempfile
from pathlib import Path

from flows.running.own_process import prepare_environment

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="albat-chaos-") as folder:
        # before the imports that read it: one thread, so that a process can be forked
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ |= {"PREFECT_HOME": f"{folder}/prefect"}
        prepare_environment()
        from bench.chaos.campaign import main

        failed = main(Path(folder), sys.argv[1:])
    sys.exit(failed)
