"""Datasets of the Hugging Face Hub: which files a configuration and a split of one are.

`datasets` says which, and nothing more: files are streamed as all others are, at the commit that
they had when they were looked for.
"""

import logging
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from albat_core.errors import InputError, MissingDependencyError, TransientError

PREFIX = "hf://datasets/"


def data_files(path: str, subset: str | None, split: str | None) -> dict[str, str]:
    """Return the files of a dataset's split, by their name in the dataset, in order.

    Args:
        path: ``owner/name`` on the Hub, with ``hf://datasets/`` before it or not, and with
            ``@revision`` behind it or not; or a local folder that is laid out like one.
        subset: its configuration; None: the only one.
        split: None: the only one.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        InputError: there is no such dataset, configuration or split.
        TransientError: the Hub does not answer.
    """
    try:
        from datasets import load_dataset_builder
        from datasets.utils.logging import get_verbosity, set_verbosity
    except ImportError as error:
        raise MissingDependencyError(
            "expected the library datasets, which is not installed",
            where=path,
            remedy="pip install 'albat[hub]', or name the files",
        ) from error
    name, _, revision = path.removeprefix(PREFIX).partition("@")
    local = Path(path).expanduser()
    if local.is_file():
        raise InputError(
            "expected a dataset, got a file",
            where=path,
            remedy="leave split and subset out: they are of datasets as the Hub has them",
        )
    if local.is_dir():  # whatever it is called
        name, revision = str(local.absolute()), ""
    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as cache:  # of scripts and descriptions alone
            builder = load_dataset_builder(name, subset, revision=revision or None, cache_dir=cache)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise InputError(
            f"expected a dataset that can be read ({str(error).splitlines()[0]})",
            where=path,
            remedy=_remedy(str(error)),
        ) from error
    except OSError as error:
        raise TransientError(
            f"the Hub did not answer as expected ({type(error).__name__}: {error})",
            where=path,
            remedy="check the name, the network, and for a private dataset HF_TOKEN",
        ) from error
    finally:
        set_verbosity(before)
    splits = {str(key): list(files) for key, files in (builder.config.data_files or {}).items()}
    wanted = next(iter(splits)) if split is None and len(splits) == 1 else split
    if wanted not in splits:
        raise InputError(
            f"expected one of the splits {', '.join(splits) or 'none'}, got {split or 'none'}",
            where=path,
            remedy="set split to one of them",
        )
    return {_named(uri, name): uri for uri in splits[wanted]}


def _named(uri: str, dataset: str) -> str:
    """Return a file's path in its dataset: behind ``@commit``, or behind the local folder."""
    place = uri.removeprefix(PREFIX)
    if place != uri:
        return place.partition("@")[2].partition("/")[2]
    with suppress(ValueError):
        return str(PurePosixPath(uri).relative_to(dataset))
    return place.rpartition("/")[2]


def _remedy(said: str) -> str:
    """Return what to do about what `datasets` says, of which the first line is shown."""
    choices = said.partition("[")[2].partition("]")[0]
    if "config" in said.lower() and choices:
        return f"set subset to one of {choices}"
    if "script" in said:
        return "it comes with code, which is not run: use a revision with data files"
    return "check the name; for a private dataset set HF_TOKEN"
