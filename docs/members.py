"""Which members the reference shows: all that are documented, and those that tell by their type."""

import re
from typing import Any

from griffe import Attribute, Class, Extension, Module, Object

PLACES = {"module-attribute", "class-attribute", "instance-attribute"}
"""Labels of what the place on the page says already."""


class Members(Extension):
    """Shows undocumented fields of models and type aliases, and hides what else says nothing."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Mark every member of a package."""
        self._mark(pkg)

    def _mark(self, parent: Module | Class) -> None:
        for member in parent.members.values():
            if member.is_alias:
                continue
            if member.docstring:
                # `::` before a block is reStructuredText; the pages are Markdown
                member.docstring.value = re.sub(r"::$", ":", member.docstring.value, flags=re.M)
            elif not tells(member, parent):
                member.public = False
            member.labels -= PLACES
            if isinstance(member, Module | Class):
                self._mark(member)


def tells(member: Any, parent: Object) -> bool:
    """Tell whether a member without a docstring is worth showing."""
    if not isinstance(member, Attribute):
        return False
    if isinstance(parent, Module):
        return not member.name.isupper() and member.name[0].isupper()  # a type alias
    is_field = member.annotation is not None and "instance-attribute" in member.labels
    return is_field and "dataclass" not in parent.labels  # whose fields are its parameters
