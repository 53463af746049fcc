"""Extension of Griffe, which reads the docstrings for the site: what they have of Sphinx becomes Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|func|meth|mod|data|exc):`~?([^`]+)`")
DOCTEST = re.compile(r"(?:^(?:>>>|\.\.\.) .*\n?)+", re.MULTILINE)
FLAG = re.compile(r" *# doctest: .*")


class SphinxToMarkdown(griffe.Extension):
    """Shows ``:func:`nms``` in code letters, and interactive examples as blocks of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{FLAG.sub('', found[0]).rstrip()}\n```\n", text)
