"""Hooks of the site, which MkDocs calls by name: notebooks are pages, and links between files of the repository work.

Pages link to files beside ``docs/``, such as ``../benchmarks/results/ops-cpu.md``, as these links must be in the
repository. On the site, ``README.md`` is the first page, ``docs/`` lies at the top, and every other file that a page
links to is added with its path in the repository, Markdown as a page. Links to web sites are not followed.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
"""The target of a Markdown link or picture, without its anchor."""
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
"""An element for which the browser fetches something from another site."""

paths: dict[str, str] = {}
"""Path in the repository of each file of the site, by its path there."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, the notebooks as pages, and the files that pages link to, also those that added pages link to."""
    paths.clear()
    paths.update({file.src_uri: f"docs/{file.src_uri}" for file in files})
    waiting = [(path, (ROOT / path).read_text(encoding="utf-8")) for path in paths.values() if path.endswith(".md")]
    notebooks = [file for file in files if file.src_uri.endswith(".ipynb")]
    waiting += [_add_notebook(files, config, file) for file in notebooks]
    waiting += _add(files, config, "README.md")
    while waiting:
        page, text = waiting.pop()
        for link in LINK.findall(text):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            if (ROOT / target).is_file():
                waiting += _add(files, config, target)
    return files


def _add_notebook(files: Files, config: MkDocsConfig, notebook: File) -> tuple[str, str]:
    """Replace a notebook by a page with its text, code and outputs; returns the page's path and text."""
    page = Path(notebook.src_uri).with_suffix(".md")
    text, resources = MarkdownExporter().from_filename(notebook.abs_src_path, {"unique_key": page.stem})
    files.remove(notebook)
    files.append(File.generated(config, page.as_posix(), content=text))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, (page.parent / name).as_posix(), content=content))
    paths[page.as_posix()] = f"docs/{page.as_posix()}"
    return paths[page.as_posix()], text


def _add(files: Files, config: MkDocsConfig, path: str) -> list[tuple[str, str]]:
    """Add a file of the repository to the site unless it is there; returns its path and text if it is a page."""
    on_site = _on_site(path)
    if on_site in paths:
        return []
    files.append(File.generated(config, on_site, abs_src_path=str(ROOT / path)))
    paths[on_site] = path
    return [(path, (ROOT / path).read_text(encoding="utf-8"))] if path.endswith(".md") else []


def _on_site(path: str) -> str:
    if path == "README.md":
        return "index.md"
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links point to where files are on the site."""
    here = page.file.src_uri

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(paths[here]), match[1]))
        return posixpath.relpath(_on_site(target), posixpath.dirname(here) or ".")

    return LINK.sub(rewrite, markdown)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuse a page that fetches fonts, scripts or pictures from another site."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri}: {found[0]} is fetched from another site; expected a part of this one")
    return output
