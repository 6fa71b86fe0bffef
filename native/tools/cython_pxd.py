"""Write what Cython must know of the C ABI, from gce.h.

    python native/tools/cython_pxd.py

* ``gce/cython.pxd``, between its marks: the header's enums, structs and functions;
* ``native/python/capsules.inc.h``: each function with the C type that Cython asks for.

A function is found at run time, in ``gce.cython.__pyx_capi__``, if its type there is spelt as in
the pxd that its caller was compiled with. Names of structs end there in a digest of all structs and
enums, so that code compiled with others is refused when it is imported.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = ROOT / "native" / "include" / "gce" / "gce.h"
PXD = ROOT / "gce" / "cython.pxd"
CAPSULES = ROOT / "native" / "python" / "capsules.inc.h"
BEGIN, END = "# --- from gce.h, by native/tools/cython_pxd.py", "# --- end of what gce.h declares"


class Function(NamedTuple):
    """Its result, its name, and type and name of each parameter."""

    result: str
    name: str
    parameters: list[tuple[str, str]]


class Declarations(NamedTuple):
    """All that the header declares, in its order, without comments."""

    enums: dict[str, list[str]]  # "NAME = 1" or "NAME"
    structs: dict[str, list[str]]  # "int32_t ndim"; of an opaque struct nothing
    constants: list[str]
    functions: list[Function]

    def tagged(self) -> dict[str, str]:
        """Structs that a caller has memory for, to names that change when any field or enumerator
        does, in name, type, value or place.
        """
        digest = hashlib.sha256(repr((self.enums, self.structs)).encode()).hexdigest()[:8]
        return {name: f"{name}_{digest}" for name, fields in self.structs.items() if fields}


def parse(header: str) -> Declarations:
    """Raises ValueError for what it does not understand: nothing of the header is left out."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    constants = re.findall(r"^#define (GCE_(?!API\b)\w+) \S", text, re.MULTILINE)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = text.replace('extern "C" {', "").rstrip().removesuffix("}")
    found = Declarations({}, {}, constants, [])
    while text := text.strip():
        if match := re.match(r"typedef enum (\w+) \{([^}]*)\} \1;", text):
            found.enums[match[1]] = items(match[2], ",")
        elif match := re.match(r"typedef struct (\w+) \{([^}]*)\} \1;", text):
            found.structs[match[1]] = items(match[2], ";")
        elif match := re.match(r"typedef struct (\w+) \1;", text):
            found.structs[match[1]] = []
        elif match := re.match(r"GCE_API ([^;()]*?)(\w+)\(([^;()]*)\);", text):
            listed = "" if match[3] == "void" else match[3]
            parameters = re.findall(r"([^,]*?) ?(\w+)(?:,|$)", ",".join(items(listed, ",")))
            found.functions.append(Function(match[1].strip(), match[2], parameters))
        else:
            raise ValueError(f"{HEADER.name}: cannot read {text.partition(';')[0]!r}")
        text = text[match.end() :]
    return found


def items(text: str, separator: str) -> list[str]:
    """What stands between separators, each on one line."""
    return [" ".join(item.split()) for item in text.split(separator) if item.strip()]


def c_type(spelt: str, tagged: dict[str, str]) -> str:
    """As Cython spells it: `const` after what is constant, and stars after one space."""
    base, star, pointers = spelt.partition("*")
    name = base.replace("const", "").strip()
    constant = " const" if "const" in base.split() else ""
    tokens = re.findall(r"\*|const", star + pointers)
    stars = "".join("const " if token == "const" else token for token in tokens)
    return f"{tagged.get(name, name)}{constant} {stars}".rstrip()


def pxd(header: Declarations) -> str:
    """The declarations in Cython: names and types, whose values and sizes the header has."""
    tagged = header.tagged()
    lines = ['cdef extern from "gce/gce.h":']
    lines += [
        '    """',
        *(f"    typedef {pair[0]} {pair[1]};" for pair in tagged.items()),
        '    """',
    ]
    for constant in header.constants:
        lines += [f"    const int {constant}", ""]
    for name, enumerators in header.enums.items():
        names = [item.partition(" = ")[0] for item in enumerators]
        lines += [f"    ctypedef enum {name}:", *(f"        {item}" for item in names), ""]
    for name, fields in header.structs.items():
        cname = f' "{tagged[name]}"' if fields else ""
        lines += [f"    ctypedef struct {name}{cname}:"]
        lines += [f"        {field}" for field in fields or ["pass"]] + [""]
    for function in header.functions:
        parameters = ", ".join(f"{kind} {name}" for kind, name in function.parameters)
        lines += [f"cdef {function.result} {function.name}({parameters}) noexcept nogil"]
    return "\n".join(lines)


def capsules(header: Declarations) -> str:
    """A row for each function; capsules.cpp says what CAPSULE makes of it."""
    tagged = header.tagged()
    rows = ["// Functions, and their types as Cython spells them; by native/tools/cython_pxd.py."]
    rows += ["// clang-format off"]
    for function in header.functions:
        result = c_type(function.result, tagged)
        parameters = ", ".join(c_type(kind, tagged) for kind, _ in function.parameters) or "void"
        space = "" if result.endswith("*") else " "
        rows.append(f'CAPSULE({function.name}, "{result}{space}({parameters})")')
    return "\n".join(rows) + "\n"


def rendered() -> dict[Path, str]:
    """What is in each file when it agrees with the header."""
    header = parse(HEADER.read_text(encoding="utf-8"))
    before, begun, rest = PXD.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{PXD.name} has not the marks {BEGIN!r} and {END!r}")
    return {PXD: f"{before}{BEGIN}\n\n{pxd(header)}\n\n{END}{after}", CAPSULES: capsules(header)}


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
