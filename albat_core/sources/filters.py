"""Quality filters on the rows of a corpus: published rules, as the library datatrove has them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)

from albat_core.errors import MissingDependencyError
from albat_core.store.stage import StageConfig

FILTERS: Mapping[str, str] = {
    "gopher_quality": "GopherQualityFilter",
    "gopher_repetition": "GopherRepetitionFilter",
    "c4": "C4QualityFilter",
    "fineweb": "FineWebQualityFilter",
}
"""Names of filters in settings, with their classes in ``datatrove.pipeline.filters``."""

_LIBRARIES = ("datatrove", "spacy")
_NO_RULE = "exclusion_writer"  # the one argument of their constructors that changes no verdict
_TURN = Lock()  # datatrove has one spaCy tokenizer for all threads, and two at once break it


class Filter(StageConfig):
    """One of datatrove's filters: a name, or a name with parameters of its constructor's.

    Written ``gopher_quality`` or ``{name: gopher_repetition, dup_line_frac: 0.2}``. The library is
    imported where one is made, not before.

    Raises:
        ValueError: no filter has the name or takes the parameters, or the library is missing.
    """

    name: str
    """Which of ``FILTERS``."""
    parameters: dict[str, Any]
    """Parameters that are not at the library's defaults, JSON values."""

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, value: Any) -> Any:
        given = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = given.pop("name", None)
        if not isinstance(name, str) or name not in FILTERS:
            got = f", got {name!r}" if isinstance(value, Mapping) else ""  # else it is told anyway
            raise ValueError(f"expected a filter's name ({', '.join(FILTERS)}){got}")
        try:
            known = _parameters(name)
            made = known.model_validate(given)
            _open(name, made)
        except ValidationError as error:
            raise ValueError(_refusal(name, known, error)) from error
        except MissingDependencyError as error:
            raise ValueError(f"{error.message}: {error.remedy}") from error
        return {"name": name, "parameters": made.model_dump(mode="json", exclude_defaults=True)}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_serializer
    def _named(self) -> str | dict[str, Any]:
        """Return it as it is written in settings."""
        return {"name": self.name} | self.parameters if self.parameters else self.name


AnyFilter = Annotated[
    Filter,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(FILTERS), "title": "name"},
                {
                    "type": "object",
                    "title": "name with parameters",
                    "properties": {
                        "name": {"type": "string", "enum": list(FILTERS), "title": "Name"}
                    },
                    "required": ["name"],
                    "additionalProperties": True,  # to list them would take the library's import
                },
            ]
        }
    ),
]
"""A setting that names a filter."""


def judge(filters: Sequence[Filter]) -> Callable[[str], str | None]:
    """Return what tells why a text is left out: the library's reason, None where it is kept.

    Every filter is given the text as it is, with line ends of Unix; the first that drops it gives
    the reason. Lines that C4 would cut out of a text it keeps stay in: a row is kept or left out
    whole.

    Raises:
        MissingDependencyError: datatrove, spaCy or what a language needs is not installed.
    """
    made = [_open(f.name, _parameters(f.name).model_validate(f.parameters)) for f in filters]

    def reason(text: str) -> str | None:
        if not made:
            return None
        if not text.strip():
            return "empty"  # as the library calls it, of whose rules some divide by the words
        from datatrove.data import Document
        from datatrove.pipeline.filters.base_filter import get_filter_result

        lines = text.replace("\r\n", "\n")
        with _TURN:
            for chosen, each in zip(filters, made, strict=True):
                kept, why = get_filter_result(each.filter(Document(text=lines, id="")))
                if not kept:
                    return why or chosen.name
        return None

    return reason


def library_versions() -> dict[str, str]:
    """Return the versions that verdicts depend on: of the rules, and of what finds words.

    Raises:
        MissingDependencyError: one is not installed.
    """
    try:
        return {name: version(name) for name in _LIBRARIES}
    except PackageNotFoundError as error:
        raise _missing() from error


def _missing() -> MissingDependencyError:
    return MissingDependencyError(
        "filters need datatrove and spaCy, of which one is not installed",
        remedy="install albat[filters], or take filters out",
    )


def _class(name: str) -> Any:
    """Return the library's class of a filter."""
    library_versions()  # spaCy would be missed at the first text only
    try:
        from datatrove.pipeline import filters
    except ImportError as error:
        raise _missing() from error
    return getattr(filters, FILTERS[name])


@cache
def _parameters(name: str) -> type[BaseModel]:
    """Return what a filter's constructor takes, as a model that refuses all else."""
    fields: dict[str, Any] = {
        each.name: (_many(each.annotation), each.default)
        for each in inspect.signature(_class(name)).parameters.values()
        if each.name != _NO_RULE
    }
    return create_model(
        name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True), **fields
    )


def _many(annotation: Any) -> Any:
    """Return a type; ``tuple[x]``, which the library writes for any number of x, as that."""
    if get_origin(annotation) is tuple and len(get_args(annotation)) == 1:
        return GenericAlias(tuple, (*get_args(annotation), ...))
    return annotation


def _open(name: str, parameters: BaseModel) -> Any:
    """Return the library's filter.

    Raises:
        MissingDependencyError: what finds words in its language is not there.
    """
    made = _class(name)(**dict(parameters))
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        load_word_tokenizer(made.language)
    except (ImportError, ValueError) as error:
        raise MissingDependencyError(
            f"expected a language in which {name} finds words, got {made.language!r} ({error})",
            remedy="name another, such as eng or deu, or install what it needs",
        ) from error
    return made


def _refusal(name: str, known: type[BaseModel], error: ValidationError) -> str:
    """Return what is wrong with a filter's parameters."""
    said = [
        f"expected a parameter of {name} ({', '.join(known.model_fields)}), got {each['loc'][0]!r}"
        if each["type"] == "extra_forbidden"
        else f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}, got {each['input']!r}"
        for each in error.errors()
    ]
    return "; ".join(dict.fromkeys(said))
