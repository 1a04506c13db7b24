"""The page of a report: one HTML text, nothing fetched from anywhere, figures beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_ACRONYMS = {word: word.upper() for word in ("auroc", "aupr", "aupro", "fpr", "froc")}
_NOTICE = (
    "<strong>Research use only.</strong> Not for clinical use: no figure or number on this page "
    "may serve a diagnosis or a decision about a patient."
)

__all__ = ["formatted", "formatted_interval", "metric_names", "report_page"]


def formatted(value: Any) -> str:
    """A value for a reader: four decimals, "-" for what is missing, never more than one line."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {formatted(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(formatted(item) for item in value)
    return "".join(c if c.isprintable() else " " for c in str(value))


def formatted_interval(interval: Sequence[Any] | None) -> str:
    """An interval for a reader, "[0.9600, 0.9810]"; nothing for none."""
    return f"[{formatted(interval)}]" if interval else ""


def metric_names(subjects: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics that any subject has, in order of appearance."""
    return list(dict.fromkeys(name for s in subjects for name in s["metrics"]))


def report_page(report: Mapping[str, Any]) -> str:
    """HTML of a report that stands alone: no script, font or style comes from elsewhere.

    Args:
        report: what `metrics.json` holds: "metrics", "settings" and "environment" by name,
            "intervals" (low and high of some metrics, where there are),
            "subjects" (dictionaries of name, score, threshold, metrics, figure, the address of the
            picture beside the page, figure_size in pixels, and viewer, the address of a page to
            walk through the volume, or None), and "training", the address of the curves, or None.
    """
    subjects = report["subjects"]
    body = [
        _section("Results", _cards(report["metrics"], report.get("intervals", {}))),
        _section(f"Subjects ({len(subjects)})", _subject_table(subjects)),
        _section("Figures, highest score first", "\n".join(map(_figure, enumerate(subjects, 1)))),
        _section("Training", _training(report["training"])),
        _section("Settings", _definitions(report["settings"])),
        _section("Software and hardware", _definitions(report["environment"])),
    ]
    return _PAGE.format(style=_STYLE, script=_SCRIPT, notice=_NOTICE, body="\n".join(body))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _title(name: str) -> str:
    """Heading of a metric: pixel_auroc -> Pixel AUROC."""
    text = " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))
    return escape(text[:1].upper() + text[1:])


def _cards(metrics: Mapping[str, Any], intervals: Mapping[str, Sequence[Any]]) -> str:
    if not metrics:
        return ""
    hint = '<p class="hint">In brackets: 95 % intervals.</p>\n' if intervals else ""
    cards = (
        f"<div><dt>{_title(name)}</dt><dd>{escape(formatted(value))}"
        f"{_bounds(intervals.get(name))}</dd></div>"
        for name, value in metrics.items()
    )
    return f'{hint}<dl class="cards">{"".join(cards)}</dl>'


def _bounds(interval: Sequence[Any] | None) -> str:
    return f" <small>{formatted_interval(interval)}</small>" if interval else ""


def _subject_table(subjects: Sequence[Mapping[str, Any]]) -> str:
    names = metric_names(subjects)
    heads = (
        f'<th scope="col"><button type="button">{head}</button></th>'
        for head in ("Subject", "Score", *map(_title, names))
    )
    rows = (_row(number, subject, names) for number, subject in enumerate(subjects, 1))
    return (
        '<p class="hint">Click a heading to sort.</p>\n'
        f'<div class="wide"><table class="sortable"><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _row(number: int, subject: Mapping[str, Any], names: Sequence[str]) -> str:
    values = [subject["score"], *(subject["metrics"].get(name) for name in names)]
    cells = (f'<td data-sort="{_sort_key(v)}">{escape(formatted(v))}</td>' for v in values)
    name = escape(formatted(subject["name"]))
    head = f'<th scope="row" data-sort="{name}"><a href="#subject-{number}">{name}</a></th>'
    return f"<tr>{head}{''.join(cells)}</tr>"


def _sort_key(value: Any) -> str:
    """Text that the page's script sorts by; empty, which sorts last, for what is missing."""
    return "" if value is None else escape(str(float(value) if isinstance(value, bool) else value))


def _figure(numbered: tuple[int, Mapping[str, Any]]) -> str:
    number, subject = numbered
    name, address = escape(formatted(subject["name"])), escape(subject["figure"])
    width, height = subject["figure_size"]
    facts = {"score": subject["score"], "threshold": subject["threshold"], **subject["metrics"]}
    terms = (
        f"<span>{_title(fact)} <b>{escape(formatted(value))}</b></span>"
        for fact, value in facts.items()
    )
    return (
        f'<figure id="subject-{number}"><figcaption><h3>{name}{_viewer_link(subject)}</h3>'
        f"<p>{' '.join(terms)}</p>"
        f'</figcaption>\n<div class="wide"><a href="{address}"><img src="{address}" loading="lazy" '
        f'width="{width}" height="{height}" '
        f'alt="Slice, anomaly score, contours and components of {name}"></a></div></figure>'
    )


def _viewer_link(subject: Mapping[str, Any]) -> str:
    """Link to the viewer of a subject that has one."""
    if subject["viewer"] is None:
        return ""
    return f' <a class="viewer" href="{escape(subject["viewer"])}">Open in 3D viewer</a>'


def _training(address: str | None) -> str:
    if address is None:
        return ""
    image = f'<img src="{escape(address)}" alt="Training curves: a panel for each quantity">'
    return f'<figure><div class="wide light">{image}</div></figure>'


def _definitions(values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = (
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(formatted(value))}</td></tr>'
        for name, value in _flat(values)
    )
    return f'<div class="wide"><table class="facts"><tbody>{"".join(rows)}</tbody></table></div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested dictionaries with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Anomaly report</title>
<style>{style}</style>
</head>
<body>
<header><h1>Anomaly report</h1><p class="notice" role="note">{notice}</p></header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1b2027; --muted: #59636e;
  --line: #d5dae0; --card: #f4f6f8; --link: #0b5cad; --warn: #fff4d6; --edge: #b98900; }
@media (prefers-color-scheme: dark) { :root { --back: #14181e; --ink: #e8ebef; --muted: #a3adb8;
  --line: #343c46; --card: #1d232b; --link: #7fb8f5; --warn: #33290f; --edge: #d9a520; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 84rem;
  background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.notice { margin: 0; padding: .6rem .9rem; background: var(--warn);
  border-left: 4px solid var(--edge); border-radius: 4px; }
.hint { margin: 0 0 .4rem; color: var(--muted); font-size: .875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 0; }
.cards div { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.cards dt { color: var(--muted); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.45rem; font-weight: 600; overflow-wrap: anywhere; }
.cards small { display: block; font-size: .85rem; font-weight: 400; color: var(--muted);
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.light { background: #ffffff; border-radius: 8px; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 9rem; }
thead th { white-space: nowrap; border-bottom: 2px solid var(--muted); }
.sortable { width: 100%; }
.sortable button { all: unset; cursor: pointer; font-weight: 600; }
.sortable button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.sortable [aria-sort=ascending] button::after { content: " \\25B2"; font-size: .7em; }
.sortable [aria-sort=descending] button::after { content: " \\25BC"; font-size: .7em; }
.facts td { text-align: left; overflow-wrap: anywhere; }
.facts th { color: var(--muted); vertical-align: top; }
figure { margin: 0 0 2rem; break-inside: avoid; }
h3 .viewer { margin-left: .8rem; font-weight: 400; }
figcaption p { margin: .1rem 0 .5rem; color: var(--muted); font-size: .92rem;
  font-variant-numeric: tabular-nums; }
figcaption span { display: inline-block; margin-right: 1.2rem; }
figcaption b { color: var(--ink); font-weight: 600; }
figure img { display: block; width: 100%; min-width: 44rem; height: auto; border-radius: 6px; }
@media print { figure img { min-width: 0; } .hint { display: none; } }
"""

_SCRIPT = """
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort;
    const compare = (a, b) => (a - b) || a.localeCompare(b, undefined, { numeric: true });
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (!key(a) || !key(b)) return !key(a) - !key(b);
      return (down ? -1 : 1) * compare(key(a), key(b));
    });
    table.tBodies[0].append(...rows);
  }));
});
"""
