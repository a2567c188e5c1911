"""How a run ends that meets an error which a person can act on."""

from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed

from albat_core.errors import AlbatError


def failed(error: AlbatError) -> State[Any]:
    """Return the state of a run that ends with an error: its message says what, where, remedy.

    A run that raised it would show a page of traceback instead. Whoever asks for the run's result
    is given the error itself.
    """
    return Failed(message=str(error), data=error)
