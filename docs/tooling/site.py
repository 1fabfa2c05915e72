"""What the site needs beyond MkDocs: pages and files from outside docs/, and mathematics without scripts.

- README.md is the site's first page and CHANGELOG.md a page of it.
- A link from a page to a file of the repository outside docs/ leads to a copy of that file in the site.
- TeX becomes MathML, which browsers draw by themselves.
- The API reference reads the package laid out as it is installed: in a checkout its subpackages lie beside it.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
import tempfile
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SUBPACKAGES = ("agents", "cli", "envs", "policies", "viewer")
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Pages from outside docs/, by their path in the repository."""
COPIES = "repository"
"""Folder of the site with the files that pages link to."""
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
TEX = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

package_folder = tempfile.TemporaryDirectory(prefix="expire-span-rl-docs-")


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lays the package out for the API reference, in links."""
    package = Path(package_folder.name) / "expire_span_rl"
    if not package.exists():
        package.mkdir()
        for path in [*(ROOT / "expire_span_rl").glob("*.py"), *(ROOT / name for name in SUBPACKAGES)]:
            (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [package_folder.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/, and copies of the files that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for target in linked(file.content_string, source_of(file.src_uri)):
            if files.get_file_from_path(f"{COPIES}/{target}") is None and (ROOT / target).is_file():
                copy = File.generated(config, f"{COPIES}/{target}", abs_src_path=str(ROOT / target))
                files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links within the repository into links within the site."""
    source = source_of(page.file.src_uri)

    def replaced(link: re.Match[str]) -> str:
        target = in_repository(link[2], source)
        return link[0] if target is None else link[1] + in_site(target, page.file.src_uri) + link[3]

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws the mathematics."""

    def drawn(formula: re.Match[str]) -> str:
        return convert(html.unescape(formula[2]).strip(), display="block" if formula[1] == "div" else "inline")

    return TEX.sub(drawn, text)


def source_of(page: str) -> str:
    """The path in the repository of a page of the site."""
    outside = {site: source for source, site in PAGES.items()}
    if page.startswith(f"{COPIES}/"):
        return page.removeprefix(f"{COPIES}/")
    return outside.get(page, f"docs/{page}")


def linked(text: str, source: str) -> list[str]:
    """The files outside docs/ that a page links to, by their paths in the repository."""
    targets = [in_repository(link[2], source) for part in FENCED.split(text)[::2] for link in LINK.finditer(part)]
    return [target for target in targets if target and not target.startswith("docs/") and target not in PAGES]


def in_repository(target: str, source: str) -> str | None:
    """A link's target by its path in the repository; None where it leads out of it."""
    if re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return None if path.startswith("..") else path


def in_site(target: str, page: str) -> str:
    """A path of the repository as a link of that page of the site."""
    if target.startswith("docs/"):
        place = target.removeprefix("docs/")
    elif target.rstrip("/") == "docs":
        place = "index.md"
    else:
        place = PAGES.get(target, f"{COPIES}/{target}")
    return os.path.relpath(place, posixpath.dirname(page) or ".").replace(os.sep, "/")
