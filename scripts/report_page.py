"""The browser page of report.py."""

from base64 import b64encode

import jinja2

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitlearn: report</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
  p { max-width: 50rem; color: #57606a; font-size: .9rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
  th, td { padding: .35rem .9rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dee4; }
  th { border-bottom: 2px solid #8c959f; } th:first-child, td:first-child { text-align: left; }
  tr:hover td { background: #f6f8fa; } td.never { color: #a40e26; }
  img { max-width: 100%; height: auto; }
</style>
<h1>splitlearn: report</h1>
{% for title, text, header, rows in tables %}
<h2>{{ title }}</h2>
{% if text %}<p>{{ text }}</p>{% endif %}
<div class="wide"><table>
  <tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}
  <tr>{% for cell in row %}<td{% if cell == "INF" %} class="never"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% for name, image in images.items() %}
<h2>{{ name }}</h2>
<img alt="{{ name }}" src="data:image/png;base64,{{ image }}">
{% endfor %}
{% if troubles %}
<h2>Not in the tables</h2>
<ul>{% for trouble in troubles %}<li>{{ trouble }}</li>{% endfor %}</ul>
{% endif %}
</html>
"""


def page(tables: list, images: dict[str, bytes], troubles: list[str]) -> str:
    """One HTML page that needs nothing beside itself."""
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    encoded = {name: b64encode(content).decode() for name, content in images.items()}
    return template.render(tables=tables, images=encoded, troubles=troubles)
