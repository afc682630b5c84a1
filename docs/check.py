"""The built site: every internal link leads somewhere, and nothing is asked of the network.

python docs/check.py docs/_build/html
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
NOT_LOADED = {"canonical", "search", "index", "genindex", "next", "prev", "author"}  # of a link element


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that have a name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in given}
        self.names |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        wanted = attributes.get(LOADS.get(tag, ""), "")
        if wanted and not (tag == "link" and set(attributes.get("rel", "").split()) & NOT_LOADED):
            self.loads.append(wanted)


def faults(root: Path) -> list[str]:
    """One sentence for each link that leads nowhere and each thing that would come from the network."""
    parsed, found = cache(Page), []
    for path in sorted(root.rglob("*.html")):
        page, name = parsed(path), path.relative_to(root)
        found += [f"{name} loads {each}" for each in page.loads if urlsplit(each).scheme in ("http", "https")]
        found += [f"{name} loads {each}" for each in page.loads if each.startswith("//")]
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in parsed(target).names:
                found.append(f"{name} links to {link}, which has no such place")
    for path in sorted(root.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        if "url(http" in text or "url(//" in text or '@import "http' in text:
            found.append(f"{path.relative_to(root)} asks for something of the network")
    return found


if __name__ == "__main__":
    said = faults(Path(sys.argv[1]))
    print("\n".join(said) or "Every internal link leads somewhere, and nothing comes from the network.")
    sys.exit(bool(said))
