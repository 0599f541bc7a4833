"""Pack the parameters of a launch as bytes, laid out as the C++ structs in csrc/.

The structs are read from their headers, so that a new field needs no change here: it is zero unless it is given. Only
the syntax of these headers is supported.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCALARS = {
    "int64_t": "q",
    "int32_t": "i",
    "uint32_t": "I",
    "int": "i",
    "float": "f",
    "bool": "?",
    "DType": "i",
    "double": "d",
}
STRUCT = re.compile(r"\bstruct (\w+)(?: : (\w+))? \{(.*?)\n\};", re.DOTALL)
CONSTANT = re.compile(r"constexpr int(?:\d+_t)? (\w+) = ([^;]+);")


@dataclass
class Field:
    offset: int
    kind: str  # of struct.pack; or the name of a struct
    count: int


@dataclass
class Layout:
    fields: dict[str, Field]
    size: int
    alignment: int


class Headers:
    """The structs of some headers."""

    def __init__(self, *paths: Path) -> None:
        text = "\n".join(re.sub(r"//[^\n]*", "", path.read_text()) for path in paths)
        self.constants: dict[str, int] = {}
        for name, value in CONSTANT.findall(text):
            if re.fullmatch(r"[\d\s*+()<\w]+", value):
                try:
                    self.constants[name] = int(eval(value, {"__builtins__": {}}, self.constants))
                except (NameError, SyntaxError):
                    continue
        self.layouts: dict[str, Layout] = {}
        for name, base, body in STRUCT.findall(text):
            try:
                self.layouts[name] = self._layout(base, body)
            except ValueError:
                continue  # not plain data; `pack` raises for it

    def _layout(self, base: str, body: str) -> Layout:
        fields = dict(self.layouts[base].fields) if base else {}
        at = self.layouts[base].size if base else 0
        alignment = self.layouts[base].alignment if base else 1
        for statement in body.split(";"):
            statement = " ".join(statement.split())
            if not statement:
                continue
            found = re.fullmatch(r"(?:const )?(?:unsigned )?(\w+)( ?\*)? ?(.*)", statement)
            if found is None:
                raise ValueError(statement)
            kind, pointer, names = found[1], bool(found[2]), found[3]
            if pointer:
                kind, size, unit = "Q", 8, 8
            elif kind in SCALARS:
                kind = SCALARS[kind]
                size = unit = struct.calcsize(kind)
            elif kind in self.layouts:
                size, unit = self.layouts[kind].size, self.layouts[kind].alignment
            else:
                raise ValueError(statement)
            for name in names.split(","):
                part = re.fullmatch(r"\s*\*?(\w+)(?:\[(.*)\])?(?: = .*)?", name)
                if part is None:
                    raise ValueError(statement)
                count = int(eval(part[2], {"__builtins__": {}}, self.constants)) if part[2] else 1
                at = (at + unit - 1) // unit * unit
                fields[part[1]] = Field(at, kind, count)
                at += size * count
                alignment = max(alignment, unit)
        return Layout(fields, (at + alignment - 1) // alignment * alignment, alignment)

    def pack(self, name: str, values: dict[str, Any]) -> bytes:
        """Pack numbers, lists for arrays and dicts for structs, by the name of their field."""
        layout = self.layouts[name]
        if unknown := set(values) - set(layout.fields):
            raise ValueError(f"{name} has no {', '.join(sorted(unknown))}; it has {', '.join(layout.fields)}")
        data = bytearray(layout.size)
        for key, value in values.items():
            field = layout.fields[key]
            items = list(value) if isinstance(value, (list, tuple)) else [value]
            for i, item in enumerate(items):
                packed = self.pack(field.kind, item) if field.kind in self.layouts else struct.pack(field.kind, item)
                at = field.offset + i * len(packed)
                data[at : at + len(packed)] = packed
        return bytes(data)
