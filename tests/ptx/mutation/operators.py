"""The kinds of damage: each a pattern of the source that gives changes, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .source import Region, Source, closing, loops, operand, pieces, stripped

Change = tuple[int, int, str, str]  # from, to, what stands there then, what was done in words
Operator = Callable[[Source, Region, "Signatures"], Iterator[Change]]
Signatures = dict[tuple[str, int], set[int]]  # (function, parameters) -> those that are integers

_COMPARE = re.compile(r" (<|<=|>|>=|==|!=) ")
_AROUND_COMPARE = r"&&|\|\||\?|:|=|return"
# Statements of floating-point arithmetic: codes, sums, gradients, split numbers.
_FLOATING = re.compile(r"\.v\[|shrunk|\b(sum|value|product|gradient)\b|part\[|small\[")
_EXCHANGED = [
    (r"shrunk\.", "first", "second"),
    (r"Atoms::", "values", "tangents"),
    (r"sets\.", "residual", "tangent"),
    (r"sets\.", "adjoint", "second"),
    (r"places\.", "slope", "bend"),
    (r"places\.", "code", "tangent"),
    (r"(?<=\W)[ab]\.", "large", "small"),
]
# What a rule does with codes is nothing to the host; what it asks for makes the plan.
_CODES = re.compile(r"\.v\[|shrunk|e\.(load|store|kept)\(|advance\(|scale\(")
_PLAN = re.compile(r"add_|keep\(|_products")
_NAMING = ("places.", "sets.", "Sets{steps}.", "Sets{e.iteration().steps}.")
# A line that is a call, an assignment or an increment; a declaration begins with two words.
_STATEMENT = re.compile(
    r"^ +(?:(?:if|for) \(.*\) |else )?((?:\+\+|--)?[*\w.:<>\[\]]+(?:\(.*\)(?:\[.*\])?)?(?: [-+*/]?= .*)?;)$",
    re.M,
)


@dataclass(frozen=True)
class Mutant:
    path: Path
    kind: str
    scope: str
    line: int
    line_text: str
    what: str  # what was done, in words
    host: bool  # it may change the plan or the sizes, which the host computes with the same code
    start: int
    end: int
    replacement: str
    number: int = 1  # of several with the same words

    @property
    def key(self) -> str:
        """Names the mutant by its text, so that it survives changes elsewhere."""
        again = f" #{self.number}" if self.number > 1 else ""
        return f"{self.path.name} {self.scope} | {self.line_text} | {self.what}{again}"

    def apply(self, text: str) -> str:
        return text[: self.start] + self.replacement + text[self.end :]


def barriers(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    for m in re.compile(r"__sync(threads|warp)\([^;]*\);").finditer(source.code, region.body, region.end):
        yield m.start(), m.end(), ";", "removed"


def waits(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    for m in re.compile(r"copies_arrive<([^;]*)>\(\);").finditer(source.code, region.body, region.end):
        yield m.start(), m.end(), ";", "removed"
        yield m.start(1), m.end(1), f"({m[1]}) + 1", "one group more may be pending"
    for m in re.compile(r"commit_copies\(\);").finditer(source.code, region.body, region.end):
        yield m.start(), m.end(), ";", "removed"


def bounds(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """Conditions outside loop headers, one comparison or operand of && and || at a time.

    A check is taken away so that its neighbours decide, or the early exit does not happen; a condition
    that stands alone is tried both ways.
    """
    code = source.code
    headers = [(start, end) for start, end, _ in loops(source, region)]
    for m in re.compile(r" (<|<=|>|>=|==|!=|&&) ").finditer(code, region.body, region.end):
        if any(start <= m.start() < end for start, end in headers):
            continue
        left = stripped(code, operand(code, m.start() - 1, -1, _AROUND_COMPARE), m.start())
        right = stripped(code, m.end(), operand(code, m.end(), 1, _AROUND_COMPARE))
        if code.endswith("if constexpr (", 0, left[0]):
            continue
        if m[1] == "&&":
            for start, end in (left, right):
                if not _COMPARE.search(code, start, end):
                    yield start, end, "true", f"`{code[start:end]}` always true"
            continue
        start, end = left[0], right[1]
        before, after = code[:start][-4:], code[end : end + 12].lstrip("\n ")
        if "&& " in before or after.startswith("&&"):
            values = ["true"]
        elif "|| " in before or after.startswith("||") or re.match(r"\) (continue|break|return);", after):
            values = ["false"]
        else:
            values = ["true", "false"]
        for value in values:
            yield start, end, value, f"`{code[start:end]}` always {value}"


def flags(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """Conditions that are a name alone: what is wanted, or given."""
    alone = re.compile(
        r"\bif \((!?[\w.]+(?:\(\)[\w.]*)*)\) |(?<![<>=!]= )(?<![<>] )(?<=[ (])([a-z][\w.]*) \? "
    )
    for m in alone.finditer(source.code, region.body, region.end):
        group = 1 if m[1] else 2
        for value in ("true", "false"):
            yield m.start(group), m.end(group), value, f"`{m[group]}` always {value}"


def loop_ends(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """One turn more, one turn fewer."""
    code = source.code
    for first, last, (_, (start, end), (next_start, next_end)) in loops(source, region):
        m = re.fullmatch(r"(.*) (<|<=|>|>=) (.*)", code[start:end])
        if not m:
            continue
        left, sign, right = m.groups()
        stride = re.search(r"([+*])= (.*)", code[next_start:next_end])
        further = f"{left} {stride[1]} ({stride[2]})" if stride else f"{left} + 1"
        fewer = {"<": f"{further} < {right}", "<=": f"{left} < {right}"}
        fewer |= {">": f"{left} > {right} + 1", ">=": f"{left} > {right}"}
        yield start, end, fewer[sign], "a turn fewer"
        more = {"<": f"{left} <= {right}", ">=": f"{left} + 1 >= {right}"}
        unrolled = source.text[:first].rsplit("\n", 2)[1] == "#pragma unroll"
        body_end = closing(code, last + 2) if code[last + 2] == "{" else code.find(";", last)
        if unrolled and re.search(rf"\[[^]]*\b{left}\b", code[last:body_end]):
            continue  # beyond an array of registers, which means nothing
        if sign in more:
            yield start, end, more[sign], "a turn more"


def subscripts(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    code = source.code
    for m in re.compile(r"(?<=[\w\])])\[").finditer(code, region.body, region.end):
        end = closing(code, m.start())
        before = code[code.rfind("\n", 0, m.start()) + 1 : m.start()]
        if re.fullmatch(r"\d+|&", code[m.end() : end]) or before.endswith(".v"):
            continue  # one of a few registers
        declared = re.search(
            r"(?:^|[(;,]) *(?:static |constexpr |const |typename |extern .*)*[\w:]+ \w+$", before
        )
        if (declared and "return" not in before) or re.search(r"\([*&]\w*\)$", before):
            continue
        yield m.end(), end, f"({code[m.end() : end]}) + 1", f"`[{code[m.end() : end]} + 1]`"


def arguments(source: Source, region: Region, signatures: Signatures) -> Iterator[Change]:
    """Integers that are handed to the device's functions, but those that name one of a few places or sets."""
    code = source.code
    for m in re.compile(r"(\w+)(?:<[\w:]+>)?\(").finditer(code, region.body, region.end):
        end = closing(code, m.end() - 1)
        spans = pieces(code, m.end(), end, ",")
        if code.endswith(_NAMING, 0, m.start()):
            continue
        for i in signatures.get((m[1], len(spans)), ()):
            start, stop = spans[i]
            what = f"`{code[start:stop]} + 1` to {m[1]}"
            yield start, stop, f"({code[start:stop]}) + 1", what


def integers(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """Where an index is computed: initial values of integers, and what functions return."""
    code = source.code
    headers = [(start, end) for start, end, _ in loops(source, region)]
    for m in re.compile(r"\b(?:int|int64_t) (?=\w+ = )").finditer(code, region.body, region.end):
        if any(start <= m.start() < end for start, end in headers):
            continue
        for start, end in pieces(code, m.end(), code.find(";", m.end()), ","):
            name, _, value = code[start:end].partition(" = ")
            if value:
                yield start + len(name) + 3, end, f"({value}) + 1", f"`{name} = {value} + 1`"
    if re.sub(r"\bstatic\b|\bconst\b", "", region.returns).strip() in ("int", "int64_t", "Real*"):
        for m in re.compile(r"\breturn ([^;]*);").finditer(code, region.body, region.end):
            yield m.start(1), m.end(1), f"({m[1]}) + 1", "result + 1"


def arithmetic(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """Signs, factors and operands of floating-point statements."""
    code = source.code
    operators = re.compile(r" ([-+]) | ([-+*])= |(?<=[ (])-(?=\w)| \* ")
    for line in re.compile(r"^(?: *for \(.*;.*;[^)\n]*\))?(.*)$", re.M).finditer(
        code, region.body, region.end
    ):
        if not _FLOATING.search(line[1]):
            continue
        for m in operators.finditer(code, line.start(1), line.end()):
            if _is_index(code[line.start(1) : m.start()]):
                continue
            if m[0] == " * ":
                start = operand(code, m.start() - 1, -1, r"[-+*/]|[-+*]?=|&&|\|\||\?|:")
                start, _ = stripped(code, start, m.start())
                yield start, m.end(), "", f"without the factor `{code[start : m.start()]}`"
            elif m[2]:
                other = {"+": "-=", "-": "+=", "*": "="}[m[2]]
                yield m.start() + 1, m.end() - 1, other, f"`{m[0].strip()}` made `{other}`"
            elif m[1]:
                yield m.start(1), m.end(1), "+" if m[1] == "-" else "-", f"sign `{m[1]}` turned"
            else:
                yield m.start(), m.end(), "", f"without the sign before `{code[m.end() : m.end() + 12]}`"


def _is_index(before: str) -> bool:
    """Whether what follows ``before`` stands in a subscript or is handed to a function."""
    open_at: list[int] = []
    for i, letter in enumerate(before):
        if letter in "([{":
            open_at.append(i)
        elif letter in ")]}" and open_at:
            open_at.pop()
    if not open_at:
        return False
    last = open_at[-1]
    name = re.search(r"\w+$", before[:last])
    called = before[last] == "(" and name and name[0] not in ("if", "body") and not name[0].startswith("__")
    return before[last] == "[" or bool(called)


def exchanges(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """One of two names that stand for things of the same kind for the other."""
    code = source.code
    for before, *pair in _EXCHANGED:
        for old, new in (pair, pair[::-1]):
            for m in re.compile(rf"{before}({old})\b").finditer(code, region.body, region.end):
                yield m.start(1), m.end(1), new, f"`{m[0]}` made `{new}`"


def statements(source: Source, region: Region, _: Signatures) -> Iterator[Change]:
    """Calls and assignments left out."""
    code = source.code
    elsewhere = (
        "return",
        "static_assert",
        "asm",
        "__sync",
        "copies_arrive",
        "commit_copies",
        "continue",
        "break",
    )
    for m in _STATEMENT.finditer(code, region.body, region.end):
        begins = code[: m.start()].rstrip()[-1] in ";{})"  # and does not continue the line before
        if begins and not m[1].startswith(elsewhere):
            yield m.start(1), m.end(1), ";", "left out"


OPERATORS: list[Operator] = [barriers, waits, bounds, flags, loop_ends, subscripts, arguments, integers]
OPERATORS += [arithmetic, exchanges, statements]


def signatures_of(sources: list[Source]) -> Signatures:
    """Which parameters of the device's functions are integers, by name and number of parameters."""
    found: Signatures = {}
    for source in sources:
        for region in source.regions:
            name = region.name.rpartition("::")[2]
            parameters = region.parameters
            spans = pieces(parameters, 0, len(parameters), ",")
            whole = {
                i
                for i, (a, b) in enumerate(spans)
                if re.match(r"(const )?(int|int64_t) \w+$", parameters[a:b])
            }
            found.setdefault((name, len(spans)), set()).update(whole)
    return found


def mutants(folder: Path) -> list[Mutant]:
    """Every change to the device code in ``folder``, in the order of the sources."""
    sources = [Source(path) for path in sorted(folder.glob("*")) if path.suffix in (".cu", ".cuh", ".h")]
    signatures = signatures_of(sources)
    found: dict[tuple[Path, int, int, str], Mutant] = {}
    names: dict[str, int] = {}
    for source in sources:
        for region in source.regions:
            for operator in OPERATORS:
                for start, end, replacement, what in operator(source, region, signatures):
                    line = source.line_text(start)
                    host = region.host and (bool(_PLAN.search(line)) or not _CODES.search(line))
                    mutant = Mutant(
                        *(source.path, operator.__name__, region.name, source.line(start), line),
                        *(what, host, start, end, replacement),
                    )
                    place = (source.path, start, end, replacement)
                    if place in found or source.text[start:end] == replacement:
                        continue
                    number = names[mutant.key] = names.get(mutant.key, 0) + 1
                    found[place] = Mutant(**{**mutant.__dict__, "number": number})
    return sorted(found.values(), key=lambda m: (m.path.name, m.start, m.end))
