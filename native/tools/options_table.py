"""Put tables of options into README.md, from the one place where options are defined.

    python native/tools/options_table.py

That place is kOptions in ``native/python/options.cpp``, as the built extension module has it. A
table stands between ``<!-- options: loss, loss_and_grad -->``, which names functions, and
``<!-- /options -->``: the options that they take, and who takes one if it is not just all of them
(leaving out functions that have a table of their own).
"""

import re
from collections.abc import Iterable
from pathlib import Path

import gce
from gce import _native

README = Path(__file__).resolve().parent.parent.parent / "README.md"
MARKS = re.compile(r"(<!-- options: ([\w, ]+) -->\n).*?(<!-- /options -->)", re.DOTALL)


def table(functions: list[str], elsewhere: Iterable[str] = ()) -> str:
    """The options of these functions, in Markdown; those `elsewhere` have a table of their own."""
    known = {function for *_, takers in _native.options() for function in takers}
    # Those of gce.shards have other names there, and a page of their own.
    hidden = {name for name in known if hasattr(_native, name) and not hasattr(gce, name)}
    elsewhere = hidden.union(elsewhere)
    if unknown := set(functions) - known:
        raise ValueError(f"{listed(sorted(unknown))}: no such function with options")
    rows = ["| option | meaning | default | functions |", "|---|---|---|---|"]
    for name, default, _, summary, takers in _native.options():
        if set(takers) & set(functions):
            here = [name for name in takers if name in functions or name not in elsewhere]
            who = who_takes(here, functions)
            rows.append(f"| `{name}` | {summary} | `{default}` | {who + ' ' if who else ''}|")
    return "\n".join(rows)


def who_takes(takers: list[str], functions: list[str]) -> str:
    """Which of the functions, if not all do, and which others."""
    only = [name for name in functions if name in takers]
    also = [name for name in takers if name not in functions]
    parts = {"only": [] if only == functions else only, "also": also}
    return ", ".join(f"{word} {listed(names)}" for word, names in parts.items() if names)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(f"`{name}`" for name in names)


def filled(text: str) -> str:
    """The text with the tables of now between its marks."""
    if len(MARKS.findall(text)) != text.count("<!-- options") or "<!-- options" not in text:
        raise ValueError("no <!-- options: FUNCTIONS -->, or one without <!-- /options -->")
    tabled = {name for _, names, _ in MARKS.findall(text) for name in names.split(", ")}
    return MARKS.sub(lambda mark: f"{mark[1]}{table(mark[2].split(', '), tabled)}\n{mark[3]}", text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
