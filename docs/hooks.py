"""What the site's generator (mkdocs) does beyond its plugins: notebooks become pages, and docstrings become lists.

`mkdocs.yml` names this file twice, as a hook of mkdocs and as an extension of Griffe, which reads the docstrings.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
PUBLIC = set(
    re.findall(
        r" as (\w+)$",
        (DOCS.parent / "bertnli" / "__init__.py").read_text("utf-8"),
        re.MULTILINE,
    )
)
# Their classes as prose names them, of those whose name is no plain word.
CLASS = re.compile(
    "|".join(
        rf"\b{name}\b(?![`'])"
        for name in sorted(PUBLIC)
        if re.match(r"[A-Z]+[a-z]*[A-Z]", name)
    )
)


class Notebook(File):
    """A .ipynb file as a page. mkdocs takes .md files alone for pages."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> None:
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(
                Notebook(
                    file.src_uri,
                    config.docs_dir,
                    config.site_dir,
                    config.use_directory_urls,
                )
            )


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    return (
        notebook_page(Path(config.docs_dir, page.file.src_uri))
        if isinstance(page.file, Notebook)
        else None
    )


def on_post_build(config: MkDocsConfig) -> None:
    for path in DOCS.rglob("*.ipynb"):  # for who wants to run it
        shutil.copy(path, Path(config.site_dir, path.relative_to(DOCS)))


def notebook_page(path: Path) -> str:
    """The Markdown of a notebook with its outputs. Its title is followed by a link to the notebook itself."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [
                shown
                for output in cell["outputs"]
                if (shown := notebook_output(output))
            ]
    download = (
        "下载本页的笔记本"
        if "zh" in path.parts
        else "Download this page as a notebook"
    )
    parts.insert(1, f'<a href="{path.name}" download>{download}</a>')
    return "\n\n".join(parts)


def notebook_output(output: dict[str, Any]) -> str:
    """The Markdown of one output of a cell: a picture, else text; nothing for progress and warnings."""
    if output["output_type"] == "stream":
        data = {"text/plain": output["text"]} if output["name"] == "stdout" else {}
    else:
        data = output.get("data", {})
    if "image/svg+xml" in data:
        picture = base64.b64encode("".join(data["image/svg+xml"]).encode()).decode()
        return f'<img alt="" src="data:image/svg+xml;base64,{picture}">'
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    text = "".join(data.get("text/plain", "")).rstrip()
    return f"```{{.text .output}}\n{text}\n```" if text else ""


class Docstrings(griffe.Extension):
    """Make Markdown of docstrings, whose blocks "name   description" are lists and whose indented blocks are code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = docstring_page(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Show the default of a training option instead of the call that declares it."""
        if str(attr.value).startswith("_option("):
            attr.value = attr.value.arguments[0]  # type: ignore[union-attr]


def docstring_page(text: str) -> str:
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(docstring_block(block) for block in blocks)


def docstring_block(block: str) -> str:
    """A paragraph, a code block or a list as Markdown."""
    lines = block.splitlines()
    if lines[0].startswith(">>> "):
        return f"```pycon\n{block}\n```"
    if all(line.startswith("    ") for line in lines):
        code = "\n".join(line[4:] for line in lines)
        return f"```{language(code)}\n{code}\n```"
    entries = read_entries(lines)
    return prose(block) if entries is None else "\n".join(entries)


def language(code: str) -> str:
    try:
        ast.parse(code)
    except SyntaxError:
        return "text"
    return "python"


def read_entries(lines: list[str]) -> list[str] | None:
    """The items of lines "name   description", with deeper lines that go on; None if the lines are not such ones."""
    entries: list[list[str]] = []
    for line in lines:
        name, _, rest = line.strip().partition("  ")
        if not line.startswith(" ") and (rest or re.fullmatch(r"\w+", name)):
            entries.append([name, rest.strip()])
        elif line.startswith(" ") and entries:
            entries[-1].append(line)
        else:
            return None
    return [item for name, *text in entries for item in list_item(name, text)]


def list_item(name: str, text: list[str]) -> list[str]:
    """The item of one name. `settings` has a list of its own. A second column ("ids   int32 [N]   ...") is a type."""
    title = ", ".join(
        part if " " in part else f"`{part}`" for part in name.split(", ")
    )
    if name == "settings":
        width = (
            min(len(line) - len(line.lstrip()) for line in text[1:])
            if len(text) > 1
            else 0
        )
        inner = (
            read_entries(
                [text[0], *(line[4 + len("settings") :] for line in text[1:])]
            )
            if width
            else None
        )
        if inner is not None:
            return [f"- {title}", *(f"    {item}" for item in inner)]
    columns = re.split(r" {2,}", text[0])
    words = " ".join([columns[-1], *(line.strip() for line in text[1:])])
    kind = f" ({prose(columns[0])})" if len(columns) == 2 else ""
    return [f"- {title}{kind}: {prose(words)}".rstrip(": ")]


def prose(text: str) -> str:
    """Text whose `<` outside code is no HTML, and whose public names are links to their reference."""
    parts = re.split(r"(`[^`]*`)", text)
    for i, part in enumerate(parts):
        if i % 2 and part.strip("`") in PUBLIC:
            parts[i] = f"[{part}][bertnli.{part.strip('`')}]"
        elif not i % 2:
            escaped = re.sub(r"[\[*_]", r"\\\g<0>", part.replace("<", "&lt;"))
            parts[i] = CLASS.sub(
                lambda found: f"[{found[0]}][bertnli.{found[0]}]", escaped
            )
    return "".join(parts)
