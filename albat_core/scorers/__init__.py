"""Scorers, one class a file; what a score says, its sign, scale and unit are in its text.

The table is here: a run's settings name a scorer, with settings of its own where they differ from
their defaults, as in ``scorer: nearest`` or ``scorer: {name: gradient, checkpoints: 8}``.
"""

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError, WithJsonSchema

from albat_core.scorers.advantage import Advantage
from albat_core.scorers.base import Scorer
from albat_core.scorers.gradient import Gradient
from albat_core.scorers.matching import Matching
from albat_core.scorers.nearest import Nearest
from albat_core.scorers.ngram import Ngram
from albat_core.scorers.random import Random

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer for scorer in (Advantage, Nearest, Ngram, Gradient, Matching, Random)
}


def chosen_scorer(value: Any) -> Scorer:
    """Return the scorer that a setting means: a name, or a name with settings of its own.

    Raises:
        ValueError: no scorer has the name, or it does not take the settings.
    """
    if isinstance(value, Scorer):
        return value
    settings = dict(value) if isinstance(value, dict) else {"name": value}
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in SCORERS:
        near = get_close_matches(str(name), SCORERS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected one of {', '.join(SCORERS)}, got {name!r}{meant}")
    try:
        return SCORERS[name].model_validate(settings)
    except ValidationError as error:
        known = ", ".join(SCORERS[name].model_fields) or "none"
        said = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise ValueError(f"{'; '.join(said)} (settings of {name}: {known})") from error


def scorer_meanings() -> str:
    """Return what the score of each scorer means, for the description of the setting."""
    return "; ".join(f"`{name}`: {scorer.says}" for name, scorer in SCORERS.items()) + "."


def _form() -> dict[str, Any]:
    """Return the setting's JSON schema: a name, or a scorer with settings of its own."""
    choices: list[dict[str, Any]] = [{"type": "string", "enum": list(SCORERS), "title": "name"}]
    for name, scorer in SCORERS.items():
        if not scorer.model_fields:
            continue
        schema = scorer.model_json_schema()
        fields = {"name": {"const": name, "type": "string", "default": name, "title": "Name"}}
        schema |= {"title": f"{name} with settings", "required": ["name"]}
        schema["properties"] = fields | schema["properties"]
        choices.append(schema)
    return {"anyOf": choices}


AnyScorer = Annotated[
    SerializeAsAny[Scorer], BeforeValidator(chosen_scorer), WithJsonSchema(_form())
]
"""A setting that names a scorer of the table."""
