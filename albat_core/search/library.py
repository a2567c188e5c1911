"""FAISS itself, and what it does on GPUs: whether it computes there, what is left to the CPU."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from albat_core.devices import device_name, resolve_device
from albat_core.errors import MissingDependencyError
from albat_core.store.stage import Runtime

logger = logging.getLogger(__name__)

MOST = 2048
"""Neighbours, and cells looked into, of a query on a GPU at most (getMaxKSelection of FAISS)."""
_FUSED_FROM = 20  # what was FAISS's own until 1.15
_PATIENCE = 120  # seconds; starting CUDA takes some
_TRIAL = """
import faiss, numpy
index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(8))
index.add(numpy.eye(8, dtype="float32"))
assert index.search(numpy.eye(8, dtype="float32"), 1)[1].ravel().tolist() == list(range(8))
"""


def load_faiss() -> Any:
    """Return FAISS.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "FAISS is needed and not installed",
            remedy="install albat[cpu], or albat[gpu] where there is a CUDA device",
        ) from error
    return faiss


@contextmanager
def fused_distances() -> Iterator[None]:
    """Have FAISS compare vectors of few dimensions by its fast kernels, as it does long ones.

    From 1.15 on it takes these where vectors times dimensions are 128,000 at least: codes of two
    dimensions learnt from 60,000 vectors take twelve times as long as from 64,000.
    """
    faiss = load_faiss()
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = _FUSED_FROM
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def gpus(runtime: Runtime) -> int:
    """Return how many GPUs FAISS computes on: 0 where it cannot, or none is wanted."""
    if resolve_device(runtime).type != "cuda":
        return 0
    count = int(load_faiss().get_num_gpus())  # 0 of a build without
    return count if count and _computes(device_name(runtime)) else 0


@cache
def _computes(name: str) -> bool:
    """Try FAISS on the GPU in a process of its own.

    Where FAISS was built without code for a GPU (the wheels of PyPI have it for compute capability
    7.0 to 8.9) it ends the process at the first kernel, and no exception can be caught.
    """
    try:
        trial = [sys.executable, "-c", _TRIAL]
        subprocess.run(trial, check=True, capture_output=True, timeout=_PATIENCE)  # noqa: S603
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        logger.warning(
            "FAISS as it is installed cannot compute on %s: the CPU searches in its place%s",
            name,
            f" ({said[-1][-200:]})" if said else "",
        )
        return False
    return True


def on_gpu(index: Any, resources: Any) -> Any:
    """Return a FAISS index on the first GPU; None where FAISS has its kind on the CPU only.

    Args:
        index: on the CPU.
        resources: FAISS's, which must outlive the index.
    """
    faiss = load_faiss()
    options = faiss.GpuClonerOptions()
    options.allowCpuCoarseQuantizer = True  # a graph of cells stays on the CPU
    try:
        return faiss.index_cpu_to_gpu(resources, 0, index, options)
    except RuntimeError as error:  # such as codes of 25 bytes, or of 4 bits
        logger.info("the index stays on the CPU: %s", error)
        return None
