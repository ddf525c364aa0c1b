"""The pages for users: their links lead somewhere, and the commands they name exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from mrmill.cli import app
from mrmill.config import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: [text](target), pictures as well; the target without a title.
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)")
WEB = re.compile(r"[a-z]+:", re.IGNORECASE)

#: Where a command stands: at the start of a line or of inline code, or behind a path or a prompt.
COMMAND = re.compile(r"(?:^|[`/$])[ \t]*mrmill[ \t]+([a-z][\w-]*)", re.MULTILINE)
BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`]+`")


def links(page: Path) -> list[str]:
    """Targets of a page's links to other files or headings, code left out."""
    prose = INLINE.sub("", BLOCK.sub("", page.read_text(encoding="utf-8")))
    return [target for target in LINK.findall(prose) if not WEB.match(target)]


def code(page: Path) -> str:
    """Everything on a page that is set as code."""
    text = page.read_text(encoding="utf-8")
    return "\n".join([*BLOCK.findall(text), *INLINE.findall(BLOCK.sub("", text))])


def anchors(page: Path) -> set[str]:
    """The headings of a page as the web spells them."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_a_heading_of_it(page):
    for target in links(page):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target}: there is no such file"
        assert not heading or heading in anchors(file), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_named_exists(page):
    known = set(get_command(app).commands)
    assert set(COMMAND.findall(code(page))) <= known


def test_the_readme_links_every_page():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(ROOT / "README.md")}
    assert {page.resolve() for page in PAGES[1:]} <= linked


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```sh\n.venv/bin/mrmill frobnicate --configfile my.yaml\n```", ["frobnicate"]),
        ("```text\n$ mrmill grind release\n```", ["grind"]),
        ("call `mrmill spin` again", ["spin"]),
        ("mrmill turns an export into a release", []),
    ],
)
def test_commands_are_found_where_they_are_typed(tmp_path, text, found):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert COMMAND.findall(code(page)) == found
