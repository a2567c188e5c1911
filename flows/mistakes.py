"""What is wrong with a configuration file, each mistake with its line."""

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence, Set
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from albat_core.runs.config import RENAMED, RunConfig

_KEY = re.compile(r"( *)(?:- )?(\w+):(?: |$)")
_MISREAD = re.compile(r"tag:yaml.org,2002:(int [-+]?0[0-9_]+$|(int|float) .*:)")
_COMMENTED = re.compile(r"( *)#( ?)( *)(\w+):\s*$")

_MOST_ENTRIES = 100_000  # of a configuration, aliases written out

Place = tuple[int, str]
"""Line and name of a field."""


def written_out(node: yaml.Node) -> int:
    """Return how many entries a file has with its aliases written out.

    Raises:
        ValueError: too many, of which a few lines are enough, or an alias of what it stands in.
    """
    counts: dict[int, int] = {}
    above: set[int] = set()

    def count(one: yaml.Node) -> int:
        if id(one) in above:
            raise ValueError(f"line {one.start_mark.line + 1} holds an alias of itself")
        if id(one) not in counts:
            above.add(id(one))
            inner = one.value if isinstance(one, yaml.CollectionNode) else ()
            parts = [p for each in inner for p in (each if isinstance(each, tuple) else (each,))]
            counts[id(one)] = 1 + sum(map(count, parts))
            above.remove(id(one))
        return counts[id(one)]

    total = count(node)
    if total > _MOST_ENTRIES:
        raise ValueError(f"{total:,} entries with its aliases, over {_MOST_ENTRIES:,}")
    return total


def repeated_keys(node: yaml.Node, above: str = "") -> dict[Place, str]:
    """Return what is said twice: YAML would silently take the last."""
    found: dict[Place, str] = {}
    if isinstance(node, yaml.SequenceNode):
        for number, inner in enumerate(node.value):
            found |= repeated_keys(inner, f"{above}{number}.")
    elif isinstance(node, yaml.MappingNode):
        lines: dict[Any, int] = {}
        for key, inner in node.value:
            name, line = f"{above}{key.value}", key.start_mark.line + 1
            if key.value in lines:
                found[line, name] = f"{name!r} is there already, in line {lines[key.value]}"
            lines[key.value] = line
            found |= repeated_keys(inner, f"{name}.")
    return found


_NAME = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")  # of a setting
_LONG = 200  # letters of a value that are no more shown
_SAID = {
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "model_type": "expected settings of its own, below it",
    "model_attributes_type": "expected settings of its own, below it",
    "string_pattern_mismatch": "expected other letters",
}
"""Mistakes in other words than pydantic's."""


def explained(node: yaml.Node, error: ValidationError) -> dict[Place, str]:
    """Return what pydantic found, without what follows from other mistakes.

    Of a union it tells of every branch, and of a list without a good item that it is too short.
    """
    found: dict[Place, str] = {}
    for each in error.errors():
        place, text = _explain(node, each)
        found.setdefault(place, text)
    names = [name for _, name in found]
    return {
        (line, name): text
        for (line, name), text in found.items()
        if not any(other.startswith(f"{name}.") for other in names)
    }


def _explain(node: yaml.Node, error: Any) -> tuple[Place, str]:
    """Return where a mistake is and its description."""
    line, location = _located(node, error["loc"])
    field = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        known = _fields_at(RunConfig, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
        meant = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        text = f"unknown key {field!r}; {meant}"
        text = new_name(error) or text
    elif error["type"] == "missing":
        text = f"{field!r} is missing; {_description(location)}"
    else:
        got, said = error["input"], error["msg"].removeprefix("Value error, ")
        said = _SAID.get(error["type"], said)
        line = _named_line(node, location, said) or line
        plain = isinstance(got, str | int | float | bool | None | list) and len(str(got)) < _LONG
        shown = f", got {got!r}" if plain and "got" not in said else ""
        text = f"{field!r}: {said[0].lower()}{said[1:]}{shown}{_hint(error)}"
    return (line, field), text


def _hint(error: Any) -> str:
    """Return what to write where YAML reads something else than was meant."""
    got = error["input"]
    if error["type"] in ("tuple_type", "list_type") and isinstance(got, str | int | float):
        return f"; write [{got}]"
    if error["type"] == "string_pattern_mismatch":
        return f" (they match {error['ctx']['pattern']})"
    if error["type"] == "string_type" and not isinstance(got, list | dict | None):
        return "; write it in quotes, without which YAML reads no text"
    if isinstance(got, str) and error["type"].startswith(("model_", "dict_")) and ":" in got:
        return "; write a space behind the colon"
    return ""


def misread_numbers(node: yaml.Node, above: str = "") -> dict[Place, str]:
    """Return the numbers that YAML takes as octal (010 is 8) or sexagesimal (1:30 is 90)."""
    found: dict[Place, str] = {}
    pairs: list[tuple[str, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        pairs = [(f"{above}{number}", inner) for number, inner in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        pairs = [(f"{above}{key.value}", inner) for key, inner in node.value]
    for name, inner in pairs:
        found |= misread_numbers(inner, f"{name}.")
        if isinstance(inner, yaml.ScalarNode) and _MISREAD.match(f"{inner.tag} {inner.value}"):
            found[inner.start_mark.line + 1, name] = (
                f"{name!r}: YAML reads {inner.value} to another base; write the number without "
                "leading zeros and colons, or a text in quotes"
            )
    return found


def new_name(error: Any) -> str | None:
    """Return what an unknown key of a run or a benchmark is called now; None where nothing is."""
    location = [str(part) for part in error["loc"]]
    field = ".".join(location[location.index("run") + 1 :] if "run" in location else location)
    if error["type"] != "extra_forbidden" or field not in RENAMED:
        return None
    return f"{field!r} is now {RENAMED[field]!r}"


def _located(node: yaml.Node, location: Sequence[str | int]) -> tuple[int, list[str | int]]:
    """Return the line of a place and its path in the file.

    What pydantic put between is left out: a union's branch, the index of a single source.
    """
    line = node.start_mark.line + 1
    written: list[str | int] = []
    for place, part in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                if part in _fields_at(RunConfig, written):
                    return line, [*written, *location[place:]]  # it is missing
                continue
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            continue
        written.append(part)
    return line, written


def _named_line(node: yaml.Node, location: Sequence[str | int], said: str) -> int | None:
    """Return the line of the first setting that is named, where the mistake's own is not written.

    None where it is written, or none that is named is.
    """
    if not location or _line_of(node, [str(location[0])]) is not None:
        return None
    lines = (_line_of(node, name.split(".")) for name in _NAME.findall(said))
    return next((line for line in lines if line is not None), None)


def _line_of(node: yaml.Node, path: Sequence[str]) -> int | None:
    """Return the line of a setting, None where it is not written."""
    line = None
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        pair = next(((k, v) for k, v in node.value if k.value == part), None)
        if pair is None:
            return None
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, alone or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union):
        found = (model_of(a) for a in typing.get_args(annotation))
        return next((m for m in found if m is not None), None)
    return None


def _sections(model: type[BaseModel]) -> dict[str, set[str]]:
    """Return the keys that each section may have, sections in sections too, by its name."""
    found: dict[str, set[str]] = {}
    for name, field in model.model_fields.items():
        if inner := model_of(field.annotation):
            for section, keys in {name: set(inner.model_fields), **_sections(inner)}.items():
                found.setdefault(section, set()).update(keys)
    return found


def _fields_at(model: type[BaseModel], location: list[str | int]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        inner = model_of(field.annotation) if field else None
        model = inner or model
    return list(model.model_fields)


def _description(location: list[str | int]) -> str:
    model: type[BaseModel] = RunConfig
    text = ""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            text = one_line(field.description)
            model = model_of(field.annotation) or model
    return text


def orphans(text: str) -> dict[Place, str]:
    """Return what to say of keys that were uncommented without the section they stand in."""
    lines, sections = text.splitlines(), _sections(RunConfig)
    found = {}
    for number, line in enumerate(lines):
        key = _KEY.match(line)
        if key and (above := _commented_above(lines[:number], key[2], len(key[1]), sections)):
            wanted = " and ".join(f"`{name}:` (line {place})" for name, place in above)
            found[number + 1, key[2]] = f"{key[2]!r}: uncomment {wanted} above it too"
    return found


def _commented_above(
    lines: list[str], key: str, indent: int, sections: Mapping[str, Set[str]]
) -> list[tuple[str, int]]:
    """Return the sections, each with its line, between a key and what it would now be part of."""
    above: list[tuple[str, int]] = []
    for number in range(len(lines) - 1, -1, -1):
        commented, there = _COMMENTED.match(lines[number]), _KEY.match(lines[number])
        if there and len(there[1]) < indent:
            break  # what it is part of
        if commented and key in sections.get(commented[4], ()):
            place = len(commented[1]) + len(commented[3])
            if place < indent:
                above.insert(0, (commented[4], number + 1))
                key, indent = commented[4], place
    return above


def one_line(description: str | None) -> str:
    """Return a description without its line ends, "" for none."""
    return (description or "").replace("\n", " ")
