"""The blocks of a page as Markdown and HTML, and tables as CSV too."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import html
import io
import itertools
import math
import re
from typing import Any
from typing import NamedTuple


class Strong(str):
  """Text in bold."""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of numbers and text.

  Attributes:
    columns: their names.
    groups: of rows, {column: value}; HTML draws a line above each group.
    prose: whether the columns are text, aligned to the left.
  """

  columns: Sequence[str]
  groups: Sequence[Sequence[Mapping[str, Any]]]
  prose: bool = False

  def csv(self):
    """Return the values in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(self.columns)
    for rows in self.groups:
      writer.writerows(map(self._values, rows))
    return out.getvalue()

  def markdown(self):
    """Return the lines of a table with pipes."""
    rows = [map(escape, self.columns)]
    rows += [["---" if self.prose else "---:"] * len(self.columns)]
    for group in self.groups:
      rows += [map(_markdown, self._values(row)) for row in group]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

  def html(self):
    """Return a <table> with a <tbody> for each group."""
    head = "".join(tag("th", name) for name in self.columns)
    kind = ' class="prose"' if self.prose else ""
    lines = [f"<table{kind}>", f"<thead><tr>{head}</tr></thead>"]
    for rows in self.groups:
      body = ["".join(map(_html, self._values(row))) for row in rows]
      body = [f"<tr>{values}</tr>" for values in body]
      lines += ["<tbody>", *body, "</tbody>"]
    return "\n".join([*lines, "</table>"])

  def _values(self, row):
    return [row.get(column) for column in self.columns]


class Picture(NamedTuple):
  """A PNG with its caption; `name` is that of its file in figures/."""

  name: str
  caption: str
  png: bytes

  def markdown(self):
    """Return a link to the file, and the caption."""
    link = f"![{self.name}](figures/{self.name}.png)"
    return f"{link}\n\n{escape(self.caption)}"

  def html(self):
    """Return a <figure> that holds the picture itself."""
    source = "data:image/png;base64," + base64.b64encode(self.png).decode()
    image = f'<img alt="{html.escape(self.caption)}" src="{source}">'
    return f"<figure>{image}{tag('figcaption', self.caption)}</figure>"


class Details(NamedTuple):
  """Preformatted text that opens on a click; Markdown leaves it out."""

  title: str
  text: str

  def html(self):
    """Return a closed <details>."""
    parts = tag("summary", self.title), tag("pre", self.text)
    return "\n".join(["<details>", *parts, "</details>"])

  def markdown(self):
    """Return nothing."""
    return ""


class Raw(NamedTuple):
  """HTML as it is; Markdown leaves it out."""

  text: str

  def html(self):
    """Return the text."""
    return self.text

  def markdown(self):
    """Return nothing."""
    return ""


class Section(NamedTuple):
  """Paragraphs, tables, pictures and details under a title.

  Attributes:
    title: of the section; "" for none.
    blocks: str is a paragraph, bold if it is Strong.
    kind: class of the grid that HTML sets pictures in.
    folded: whether HTML shows it on a click only.
  """

  title: str
  blocks: Sequence[str | Table | Picture | Details | Raw]
  kind: str = "curves"
  folded: bool = False

  def markdown(self):
    """Return the title and the blocks with empty lines between, or nothing."""
    parts = [
      _markdown(block) if isinstance(block, str) else block.markdown()
      for block in self.blocks
    ]
    title = [f"## {escape(self.title)}"] if self.title and any(parts) else []
    return "\n\n".join(filter(None, [*title, *parts]))

  def html(self):
    """Return the title and the blocks, neighbouring pictures in one grid."""
    lines = [tag("h2", self.title)] if self.title else []
    for pictures, blocks in itertools.groupby(
      self.blocks, lambda block: isinstance(block, Picture)
    ):
      inside = [
        _paragraph(block) if isinstance(block, str) else block.html()
        for block in blocks
      ]
      grid = [f'<div class="{self.kind}">', *inside, "</div>"]
      lines += grid if pictures else inside
    if self.folded:
      head = tag("summary", self.title)
      lines = [f'<details class="section">{head}', *lines[1:], "</details>"]
    return "\n".join(lines)


def number(value):
  """Return a value as readers see it, numbers with a few digits."""
  if isinstance(value, str | int | None):
    return "" if value is None else str(value)
  plain = value == 0 or 1e-3 <= abs(value) < 1e6 or not math.isfinite(value)
  return f"{value:.3f}" if plain else f"{value:.2e}"


def escape(text):
  """Return text on one line that Markdown takes literally."""
  return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def tag(name, text):
  """Return an HTML element that holds text."""
  return f"<{name}>{html.escape(str(text))}</{name}>"


def _paragraph(text):
  strong = isinstance(text, Strong)
  return f"<p>{tag('strong', text)}</p>" if strong else tag("p", text)


def _markdown(value):
  text = escape(number(value))
  return f"**{text}**" if isinstance(value, Strong) else text


def _html(value):
  if isinstance(value, Strong):
    return f"<td>{tag('strong', value)}</td>"
  return tag("td", number(value))
