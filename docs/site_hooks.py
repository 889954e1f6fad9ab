"""Hooks of the documentation site: pages from outside docs/, and links that leave docs/.

The pages are written for a checkout, where `../bench/RESULTS.md` is a file. On the site such a link
leads to the page made from that file, or to the file in the repository.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/RESULTS.md": "results.md",
    "pianissimo/assets/embedded-commands/README.md": "model-card.md",
}
"""Files outside docs/ that are pages of the site: path in the repository to path on the site."""
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose sources are outside docs/."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to pages of the site, or to the repository."""
    target = page.file.src_uri
    source = {page: path for path, page in PAGES.items()}.get(target, f"docs/{target}")

    def replace(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        if re.match(r"[a-z]+:", path):
            return link[0]
        named = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if named in PAGES:
            named = PAGES[named]
        elif named.startswith("docs/"):
            named = named.removeprefix("docs/")
        else:
            kind = "tree" if (ROOT / named).is_dir() else "blob"
            return f"{config.repo_url}/{kind}/main/{named}{anchor}"
        return os.path.relpath(named, posixpath.dirname(target) or ".") + anchor

    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, LINK.sub(replace, markdown[end:])])
