"""Sources of rows: how one is configured, and how its rows become examples."""

from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from albat_core.sources.filters import AnyFilter
from albat_core.sources.formats import FORMATS, FormatName
from albat_core.sources.formats.text import Text
from albat_core.store.stage import StageConfig

Column = Annotated[str, Field(min_length=1)]
TOKEN = "token"  # noqa: S105 - what a template calls the rare word

TEMPLATES = ("prompt_template", "answer_template", "template")
"""Fields that make a text of columns."""


class SourceConfig(StageConfig):
    """One source of rows: files of one layout, and which columns make an example.

    What a row trains on is given in one of four ways: ``text_column``; ``template``;
    ``prompt_template`` with ``answer_template``; or ``messages_column``. With pictures the first
    two give the caption.
    """

    path: str | tuple[str, ...]
    """Files, folders or globs, local or `s3://`, `gs://`, `az://`, `https://`, `hf://`; folders are
    read with all below them. Where `subset` or `split` is set: datasets of the Hugging Face Hub, as
    in `owner/name`, a revision behind `@`; or local folders laid out like one."""
    subset: str | None = Field(None, min_length=1)
    """Configuration of a dataset of the Hub (`albat[hub]`). Default: the only one, where
    `split` says that it is one."""
    split: str | None = Field(None, min_length=1)
    """Split of a dataset of the Hub (`albat[hub]`). Default: the only one, where `subset`
    says that it is one."""
    format: FormatName = "auto"
    """Format of the files; `auto` goes by their endings, compressed ones included. `images` are
    picture files, captions beside them in `.txt` or `.caption` of the same name or in
    `metadata.jsonl` or `metadata.csv` by `file_name`; `webdataset` is tar archives."""
    delimiter: str | None = Field(None, min_length=1)
    """What stands between the documents of a text file, as in `"\\n---\\n"` for lines of three
    dashes. Default: a file is one document."""
    name: str | None = Field(None, min_length=1)
    """Label of the source, and the beginning of ids made from file names. Default: the file's
    name without endings, or the folder's for text and saved datasets."""
    id_column: Column | None = None
    """Column with each row's unique id, text or number. Default: "file:row", rows from 0. In JSON,
    Parquet and Arrow this or any column may lie in another: `metadata.url`."""
    document_column: Column | None = None
    """Column naming what a row is part of; splits and `share` keep documents whole; 7 and 7.0 are
    one, as are names that differ in spaces around them. Default, and where null: the row itself."""
    source_column: Column | None = None
    """Column with each row's source. Default, and where null: `name`."""
    text_column: Column | None = None
    """Column with the text. Default: `text`; text files are their own."""
    image_column: Column | None = None
    """Column with a picture: its file's bytes, {bytes, path}, or the path of a file, relative to
    the row's file. Default: `image` for `images` and `webdataset`, else none."""
    image_root: str | None = None
    """Folder, local or remote, that pictures are in which a table names by their paths: nothing
    else is read, whatever a row says. Default: that of the row's file."""
    allow_urls: bool = False
    """Whether rows may name pictures by addresses elsewhere, which are then asked for them."""
    template: str | None = None
    """Text made of columns, as in `"Question: {question}\\nAnswer: {answer}"`; null is empty.
    Classes of `datasets` are their names; a column of whole floats in Parquet and Arrow is printed
    as whole numbers. With pictures it may name no column: all have the same caption."""
    token: str | None = Field(None, min_length=1)
    """What `{token}` stands for in a template: the rare word of DreamBooth prompts, as in `"a photo
    of {token} dog"`."""
    prompt_template: str | None = None
    """Beginning of the text, made of columns, that carries no loss."""
    answer_template: str | None = None
    """Rest of the text, made of columns, that carries the loss."""
    messages_column: Column | None = None
    """Column with a chat: a list of {role, content}, or JSON of one. Other keys (`tool_calls`,
    `reasoning_content`, ...) reach the chat template. Loss on the assistant's messages, but on none
    with `weight: 0`."""
    tools_column: Column | None = None
    """Column with the tools that a chat's template is given: a list, or JSON of one. Default, and
    where null: the `tools` of a message, where one has them."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of the documents used, in (0, 1]; drawn by a hash of the document's name, so a
    document stays in as others are added and as the share grows."""
    filters: tuple[AnyFilter, ...] = ()
    """Rules of datatrove by which rows of a corpus of texts are left out and counted:
    `gopher_quality`, `gopher_repetition`, `c4` and `fineweb`, each alone or with its own
    parameters, as in `{name: gopher_quality, min_doc_words: 20}`. They look at whole rows, before
    they are cut: the rules are for documents. Needs `albat[filters]`."""
    overlong: Literal["split", "truncate", "refuse"] = "split"
    """What to do with rows over the backbone's max_length: cut into pieces, keep the first of these
    alone, or raise an error."""
    on_null: Literal["skip", "refuse"] = "skip"
    """What to do with rows whose text or picture is null or blank, of a template all columns (of
    prompt and answer: either's): skip and count, or raise an error."""
    on_damaged: Literal["refuse", "skip"] = "refuse"
    """What to do with pictures that cannot be read: raise an error, or skip and count."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    @field_validator("filters", mode="before")
    @classmethod
    def _none_named(cls, value: Any) -> Any:
        return () if value is None else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if not self.paths or not all(path.strip() for path in self.paths):
            problems.append("path names nothing: give a file, a folder or a glob")
        if (self.prompt_template is None) != (self.answer_template is None):
            problems.append("prompt_template and answer_template need each other: give both")
        kinds = [
            name
            for name in ("text_column", "template", "prompt_template", "messages_column")
            if getattr(self, name) is not None
        ]
        if len(kinds) > 1:
            problems.append(f"{' and '.join(kinds)} exclude each other: give one of them")
        if self.tools_column and not self.messages_column:
            problems.append("tools_column is for chats: give messages_column too")
        tokens = 0
        for field in TEMPLATES:
            template = getattr(self, field)
            if template is None:
                continue
            try:
                columns = [column for _, column in template_parts(template) if column]
            except ValueError as error:
                problems.append(f"{field} {template!r} cannot be read: {error}")
                continue
            tokens += columns.count(TOKEN)
            if not columns and field == "answer_template":
                problems.append(f"{field} {template!r} names no column: write {{column}}")
        if self.token is not None and not tokens:
            problems.append("token is set, but no template has {token}")
        if self.format != "auto":
            problems += self.misfits(self.format)
        elif self.image_column:
            problems += self.misfits("parquet")  # or any other table
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def misfits(self, form: str) -> list[str]:
        """Return what is wrong with the source for files of that format."""
        problems = []
        if self.delimiter is not None and form != Text.name:
            problems.append("delimiter is for text files: other rows say what is a document")
        if self.image_column or FORMATS[form].pictures:
            for field in ("prompt_template", "messages_column"):
                if getattr(self, field) is not None:
                    problems.append(f"{field} is not for pictures: give text_column or template")
            if self.filters:
                problems.append("filters are for texts, of which captions are too short: drop them")
        elif self.template is not None and not self.template_columns("template"):
            problems.append(f"template {self.template!r} names no column: write {{column}}")
        return problems

    def template_columns(self, field: str) -> list[str]:
        """Return the columns that one of ``TEMPLATES`` names, in order; none if it is not set."""
        try:
            parts = template_parts(getattr(self, field) or "")
        except ValueError:
            return [""]  # said elsewhere
        found = (column for _, column in parts if column is not None)
        return [column for column in found if self.token is None or column != TOKEN]

    @property
    def on_hub(self) -> bool:
        """Whether `path` names datasets, of which `datasets` says what their files are."""
        return bool(self.subset or self.split)

    @property
    def paths(self) -> tuple[str, ...]:
        """All of ``path``."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def columns(self) -> dict[str, str]:
        """Columns that are read, each with the field that names it."""
        wanted: dict[str, str] = {}
        for field in TEMPLATES:
            wanted |= dict.fromkeys(self.template_columns(field), field)
        for field in ("messages_column", "tools_column", "text_column"):
            if column := getattr(self, field):
                wanted[column] = field
        if not wanted and self.template is None:
            wanted["text"] = "text_column"
        if self.image_column:
            wanted[self.image_column] = "image_column"
        for field in ("id_column", "document_column", "source_column"):
            if column := getattr(self, field):
                wanted.setdefault(column, field)
        return wanted


@lru_cache(maxsize=64)
def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Return the template's literal texts, each with the column that follows (None: none).

    Raises:
        ValueError: braces do not pair, or hold other than a column's name.
    """
    parts = []
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ or }}}} for a brace in the text") from error
    for literal, column, layout, conversion in parsed:
        if column is not None and (not column.strip() or layout or conversion):
            raise ValueError("braces hold a column's name only; write {{ for a brace in the text")
        parts.append((literal, column))
    return parts
