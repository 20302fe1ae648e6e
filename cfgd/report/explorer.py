"""Samples from the same noise, of which a slider chooses w.

A part of a page without a network: the pictures are inside, and a few lines of
script exchange them. A keyboard reaches both controls. Without script, or in
print, the first picture stands there.
"""

import base64
import html
import json

from cfgd.report import blocks
from cfgd.report import plots

_HTML = """<div class="explorer">
<p><label>{way} <select id="way">{options}</select></label></p>
<p><label for="strength">Guidance strength</label>
<input type="range" id="strength" min="0" max="{most}" value="0" step="1">
<output id="shown" aria-live="polite">{first}</output></p>
<img id="samples" alt="{alt}" src="{source}">
<script type="application/json" id="ways">{data}</script>
<script>{script}</script>
<noscript><p>The slider needs JavaScript.</p></noscript>
</div>"""
_SCRIPT = """
(() => {
  const ways = JSON.parse(document.getElementById("ways").textContent);
  const [way, strength, shown, samples] =
    ["way", "strength", "shown", "samples"].map(
      (id) => document.getElementById(id));
  let w = ways[0].points[0].w;
  const show = () => {
    const point = ways[way.value].points[strength.value];
    w = point.w;
    shown.textContent = point.text;
    strength.setAttribute("aria-valuetext", point.text);
    samples.src = point.source;
    samples.alt = "Samples at " + point.text;
  };
  const choose = () => {
    const points = ways[way.value].points;
    const apart = points.map((point) => Math.abs(point.w - w));
    strength.max = points.length - 1;
    strength.value = apart.indexOf(Math.min(...apart));
    show();
  };
  way.addEventListener("change", choose);
  strength.addEventListener("input", show);
  choose();
})();
"""


def block(ways):
  """Return the block, or None without pictures.

  Args:
    ways: {label: [(strength, text, PNG)]} in order of strength; the first label
      is shown first.
  """
  ways = {label: points for label, points in ways.items() if points}
  if not ways:
    return None
  data = [
    {
      "label": label,
      "points": [
        {"w": w, "text": text, "source": _source(png)}
        for w, text, png in points
      ],
    }
    for label, points in ways.items()
  ]
  options = [
    f'<option value="{i}">{html.escape(way["label"])}</option>'
    for i, way in enumerate(data)
  ]
  first = data[0]["points"][0]
  text = _HTML.format(
    way="Sampled by",
    options="".join(options),
    most=len(data[0]["points"]) - 1,
    first=html.escape(first["text"]),
    alt=html.escape(f"Samples at {first['text']}"),
    source=first["source"],
    # No "</script>" inside of a string ends the element.
    data=json.dumps(data).replace("<", "\\u003c"),
    script=_SCRIPT,
  )
  return blocks.Raw(text)


def describe(result, distance, score):
  """Return what the slider says about a cell: w and its scores."""
  values = [
    f"{name} {blocks.number(result.metric(name))}" for name in (distance, score)
  ]
  return ", ".join([f"w={plots.both(result.cell.w)}", *values])


def _source(png):
  return "data:image/png;base64," + base64.b64encode(png).decode()
