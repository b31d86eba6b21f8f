"""Where the device code is in a CUDA source, and a few ways to read it without a parser.

Everything here relies on clang-format: binary operators stand between blanks, template brackets do not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_DEVICE = re.compile(r"__device__|__global__|FSAD_HOST_DEVICE")
_COMMENT = re.compile(r"//[^\n]*|\"(?:\\.|[^\"\\\n])*\"")
_DIRECTIVE = re.compile(r"^#(?:[^\n]*\\\n)*[^\n]*", re.M)
_CLASS = re.compile(r"^(?:struct|class)(?: alignas\([^)]*\))? (\w+)[^;{]*\{", re.M)
_NOT_NAMES = {"__launch_bounds__", "__align__", "alignas", "decltype"}


@dataclass(frozen=True)
class Region:
    """One function that runs on the device, from its first word to the brace that ends it."""

    name: str  # Class::function
    returns: str  # the type, as written
    parameters: str
    start: int
    body: int
    end: int
    host: bool  # runs on the host too


class Source:
    """One file; ``code`` is its text with comments, strings and directives blanked, the same length."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        code = _COMMENT.sub(lambda m: " " * len(m[0]), self.text)
        self.code = _DIRECTIVE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), code)

    @cached_property
    def regions(self) -> list[Region]:
        classes = [(m[1], m.start(), closing(self.code, m.end() - 1)) for m in _CLASS.finditer(self.code)]
        found: list[Region] = []
        for keyword in _DEVICE.finditer(self.code):
            if found and keyword.start() < found[-1].end:
                continue
            region = self._region(keyword, classes)
            if region:
                found.append(region)
        return found

    def _region(self, keyword: re.Match[str], classes: list[tuple[str, int, int]]) -> Region | None:
        for call in re.compile(r"(\w+)\(").finditer(self.code, keyword.end()):
            if call[1] not in _NOT_NAMES:
                break
        else:
            return None
        end = closing(self.code, call.end() - 1)
        stop = re.compile(r"[;{]").search(self.code, end)
        if not stop or stop[0] == ";":
            return None  # a declaration
        owner = next((name for name, first, last in classes if first < keyword.start() < last), None)
        name = f"{owner}::{call[1]}" if owner else call[1]
        returns = self.code[keyword.end() : call.start()].replace("__forceinline__", "").strip()
        host = keyword[0] == "FSAD_HOST_DEVICE"
        body_end = closing(self.code, stop.start()) + 1
        parameters = self.code[call.end() : end]
        return Region(name, returns, parameters, keyword.start(), stop.start(), body_end, host)

    def line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def line_text(self, at: int) -> str:
        return self.text[self.text.rfind("\n", 0, at) + 1 : self.text.find("\n", at)].strip()


def device_digest(folder: Path) -> str:
    """Of all functions of a folder that run on the device, without comments and white space."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        source = Source(path)
        for region in source.regions:
            code = "".join(source.code[region.start : region.end].split())
            digest.update(f"{path.name}\0{region.name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


def closing(code: str, at: int) -> int:
    """The position of the bracket that closes the one at ``at``."""
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if depth == 0:
            return i
    raise ValueError(f"no end of {code[at : at + 40]!r}")


def pieces(code: str, start: int, end: int, separator: str) -> list[tuple[int, int]]:
    """The spans between separators outside brackets, without the blanks around them."""
    spans, depth, first = [], 0, start
    for i in range(start, end):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if depth == 0 and code[i] == separator:
            spans.append((first, i))
            first = i + 1
    spans.append((first, end))
    return [stripped(code, *span) for span in spans]


def stripped(code: str, start: int, end: int) -> tuple[int, int]:
    text = code[start:end]
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def operand(code: str, at: int, step: int, stops: str) -> int:
    """The end of the operand next to ``at``, to the left (step −1) or right (+1).

    It ends at an unmatched bracket, at ``;`` or ``,``, or at an operator of ``stops`` (a regular
    expression) between blanks.
    """
    opening, ending = ("([{", ")]}") if step > 0 else (")]}", "([{")
    stop = re.compile(stops)
    depth, i = 0, at
    while 0 <= i < len(code):
        if code[i] in opening:
            depth += 1
        elif code[i] in ending:
            if depth == 0:
                break
            depth -= 1
        elif depth == 0:
            if code[i] in ";,":
                break
            if code[i] == " ":  # an operator between blanks begins or ends here
                word = (
                    code[i : code.find(" ", i + 1) + 1] if step > 0 else code[code.rfind(" ", 0, i) : i + 1]
                )
                if stop.fullmatch(word.strip()) or (step < 0 and word.strip() == "return"):
                    break
        i += step
    return i if step > 0 else i + 1


def loops(source: Source, region: Region) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Each for statement: where its header begins and ends, and its three parts."""
    for match in re.compile(r"\bfor \(").finditer(source.code, region.body, region.end):
        end = closing(source.code, match.end() - 1)
        yield match.end(), end, pieces(source.code, match.end(), end, ";")
