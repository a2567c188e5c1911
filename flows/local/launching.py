"""Runs a module of Prefect's with this project's packages already known.

Prefect looks for a flow's package in the folder that it runs in first, and a folder of a person's
own may well hold one that is called ``flows``, too.
"""

import runpy
import sys

import albat_core  # noqa: F401
import flows  # noqa: F401
import tasks  # noqa: F401

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
