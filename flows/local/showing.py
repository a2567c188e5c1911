"""Pages of runs over http, where `albat up` has a server: its own may not link to files.

A run that ends links its output folder into a folder of `albat up`'s; what is linked there is
served beside Prefect's own pages, to this machine alone, and ends with `albat down`.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import Mount

SETTING = "ALBAT_PAGES"
"""Of the environment of a server and its runs: the folder of the links."""
_PREFIX = "/albat"
_API = "PREFECT_API_URL"


def address_of(page: Path) -> str | None:
    """Let a page in an output folder be served; return its address, None where nothing serves it.

    Args:
        page: an absolute path; all of its folder is served with it.
    """
    folder, api = os.environ.get(SETTING), os.environ.get(_API)
    if not folder or not api:
        return None
    output = page.parent
    name = f"{output.name}-{hashlib.blake2b(str(output).encode(), digest_size=4).hexdigest()}"
    link = Path(folder, name)
    try:
        link.symlink_to(output, target_is_directory=True)
    except FileExistsError:  # its name says where it leads
        pass
    except OSError:
        return None
    return f"{api.removesuffix('/api')}{_PREFIX}/{name}/{page.name}"


def pages_in(folder: str) -> "Mount":
    """Return what serves the linked folders, to whoever asks for this machine by its own name."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    # Another site's name may be made to mean this machine: then its scripts could read the pages.
    own = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    served = StaticFiles(directory=folder, follow_symlink=True)
    return Mount(_PREFIX, app=served, middleware=[own])
