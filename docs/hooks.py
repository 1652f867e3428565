"""Hooks of mkdocs: the pages that stand outside docs/, and links that are right on GitHub and on the site.

README.md is the site's start page, and CONTRIBUTING.md and CHANGELOG.md are pages too. GitHub shows the same files at the root of
the repository, so that their links begin there (``docs/losses.md``). On the site each link leads to the page of the file that it
names. A file of the repository that is no page has no address on the site: its link becomes plain text there. A link to a file
that does not exist is a warning, at which ``mkdocs build --strict`` fails.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).resolve().parent.parent
#: files at the root of the repository -> pages of the site
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
#: an element that neither the theme nor the markdown extensions nor mkdocstrings write
STRANGE = re.compile(
    r"<(?!(?:a|abbr|article|autoref|b|blockquote|br|button|code|details|div|em|h[1-6]|hr|img|input|label|li|ol|p|path|pre|small|span"
    r"|strong|sub|summary|sup|svg|table|tbody|td|th|thead|tr|ul)\b)([A-Za-z_][\w-]*)"
)
LINK = re.compile(r"(?P<before>!?\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\()(?P<target>[^()\s]+)(?P<after>(?: \"[^\"]*\")?\))")
HTML = re.compile(r"(?P<before>\b(?:src|href|srcset)=\")(?P<target>[^\"]+)(?P<after>\")")


def on_files(files, config):
    """Adds the pages that stand at the root of the repository."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites the links of a page, but for those inside blocks of code."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # its section has one page
    place = _source(page.file.src_uri)

    def inline(match):
        target = _target(match["target"], place, page.file.src_uri)
        return match["text"] if target is None else match["before"] + target + match["after"]

    def html(match):
        target = _target(match["target"], place, page.file.src_uri)
        return match["before"] + (match["target"] if target is None else target) + match["after"]

    out, end = [], 0
    for block in FENCE.finditer(markdown):
        out += [HTML.sub(html, LINK.sub(inline, markdown[end : block.start()])), block[0]]
        end = block.end()
    return "".join(out) + HTML.sub(html, LINK.sub(inline, markdown[end:]))


def on_page_content(html, page, config, files):
    """Warns of text that a browser would swallow: ``<x_i, y_j>`` outside a code span of a docstring looks like an HTML element."""
    for name in sorted(set(STRANGE.findall(html))):
        log.warning("%s: <%s...> is no HTML element; put the formula into a code span", page.file.src_uri, name)
    if page.file.src_uri.startswith("api/") and "<blockquote" in html:
        log.warning("%s: >>> outside the section Examples: of a docstring becomes a quotation", page.file.src_uri)


def _source(page: str) -> str:
    """The file of the repository that a page of the site is made from."""
    return next((source for source, at in PAGES.items() if at == page), f"docs/{page}")


def _target(link: str, source: str, page: str) -> str | None:
    """A link of ``source`` as its page needs it; None where the file it names is no page."""
    if link.startswith(("#", "/")) or re.match(r"[a-z]+:", link):
        return link
    path, _, anchor = link.partition("#")
    named = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / named).exists():
        log.warning("%s links to %s, which does not exist", source, link)
        return None
    if named in PAGES:
        at = PAGES[named]
    elif named.startswith("docs/"):
        at = named.removeprefix("docs/")
    else:
        return None
    return posixpath.relpath(at, posixpath.dirname(page) or ".") + ("#" + anchor if anchor else "")
