"""Hooks of mkdocs: pages of the repository outside of docs/, links that leave docs/, and the page of commands.

Pages link as they do in the repository. In the site, README is the first page, and every other file that a page links
to outside of docs/ is copied under repository/; text that a browser would download is wrapped in a page.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside of docs/, with what they are called in the site."""

AS_THEY_ARE = (".png", ".svg", ".html", ".pdf", ".csv")
LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<rest>(?:#[^)\s]*)?(?:\s+\"[^\"]*\")?)\)")
COMMANDS = "<!-- generated: command-line -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/ and every file that a page links to there."""
    for source, page in PAGES.items():
        head = "---\nhide: [navigation]\n---\n\n" if page == "index.md" else ""
        files.append(File.generated(config, page, content=head + (ROOT / source).read_text(encoding="utf-8")))
    sources = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None)]
    outside = {target for source in sources for target in _targets(source) if _is_outside(target)}
    for target in sorted(outside):
        path = ROOT / target
        if path.suffix in AS_THEY_ARE:
            files.append(File.generated(config, _in_site(target), abs_src_path=str(path)))
        else:
            files.append(File.generated(config, _in_site(target), content=_as_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at the places of their targets in the site, and fill in the commands."""
    source = {page_: source for source, page_ in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def relinked(link: re.Match[str]) -> str:
        target = _target(source, link["path"])
        if target is None:
            return link[0]
        return f"]({posixpath.relpath(_in_site(target), here or '.')}{link['rest']})"

    text = markdown if page.file.src_uri.startswith("repository/") else LINK.sub(relinked, markdown)
    return text.replace(COMMANDS, "\n".join(_commands())) if COMMANDS in text else text


# ---- links ---------------------------------------------------------------------------------------------------


def _targets(source: str) -> Iterator[str]:
    for link in LINK.finditer((ROOT / source).read_text(encoding="utf-8")):
        if target := _target(source, link["path"]):
            yield target


def _target(source: str, path: str) -> str | None:
    """Return the file of the repository that a link leads to, None if there is none."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    return target if (ROOT / target).is_file() else None


def _is_outside(target: str) -> bool:
    return target not in PAGES and not target.startswith("docs/")


def _in_site(target: str) -> str:
    if not _is_outside(target):
        return PAGES.get(target, target.removeprefix("docs/"))
    is_page = target.endswith((".md", *AS_THEY_ARE))
    return f"repository/{target}" if is_page else f"repository/{target}.md"


def _as_page(target: str) -> str:
    text = (ROOT / target).read_text(encoding="utf-8")
    if not target.endswith(".md"):
        text = f"# {target}\n\n````{Path(target).suffix.removeprefix('.') or 'text'}\n{text}\n````\n"
    return f"---\ntitle: {target}\nsearch:\n  exclude: true\n---\n\n{text}"


# ---- commands ------------------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    """Yield the lines of the page of commands."""
    from bench.cli import cli

    context = click.Context(cli, info_name="bench")
    yield _prose(cli)
    for name in sorted(cli.list_commands(context)):
        command = cli.get_command(context, name)
        assert command is not None
        inside = click.Context(command, info_name=name, parent=context)
        usage = " ".join(["bench", name, *command.collect_usage_pieces(inside)])
        yield from ("", f"## bench {name}", "", f"    {usage}", "", _prose(command), "")
        options = {one.opts[-1]: one for one in command.get_params(inside) if isinstance(one, click.Option)}
        headings = getattr(command, "headings", {"": tuple(options)})
        for heading, flags in headings.items():
            yield from ([f"**{heading}**", ""] if heading else [])
            yield from ("| option | what it does |", "|:--|:--|")
            yield from (_row(options[flag], inside) for flag in flags)
            yield ""


def _prose(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\b", "")


def _row(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else " " + option.make_metavar(context).replace(" RANGE", "")
    default = f" Default: `{option.default}`." if option.show_default is True and not option.is_flag else ""
    words = f"{option.help or ''}{default}".replace("[default:", "\\[default:")
    return f"| `{', '.join(option.opts)}{value}` | {words} |".replace("||", "|")
