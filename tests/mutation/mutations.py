"""Finds the mutations of a source file in C++, CUDA or C#: small changes of meaning, each of which tests should notice.

A mutation is a region of the text and what takes its place. Sources are formatted by one law, so patterns over the
text suffice: a binary operator has spaces around it, a template's brackets have none. What does not compile is dropped
later.
"""

import hashlib
import re
import sys
from dataclasses import dataclass

OPENING, CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Mutation:
    file: str  # from the root of the repository
    kind: str
    line: int  # the region's first
    start: int
    end: int
    before: str
    after: str
    statement: bool  # an expression otherwise

    @property
    def key(self):
        """The same however the lines around it move: file, kind, what becomes what."""
        return f"{self.file}\t{self.kind}\t{squeeze(self.before)} -> {squeeze(self.after)}"


def records(path):
    """What chosen.txt and survivors.txt hold: dictionaries of the marks `file`, `=` (kind), `-` (text), `+` (what takes
    its place) and `:` (reason); a file and a kind stand for all that follows them."""
    found, now, mark = [], {}, None
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("  "):
            now[mark] += " " + line.strip()
            continue
        mark, text = (line[0], line[2:].strip()) if line[0] in "=-+:" else ("file", line.strip())
        if mark == "-":  # the next one, of the same file and kind
            now = {name: now[name] for name in ("file", "=") if name in now}
            found.append(now)
        elif mark == "file":
            now = {}
        elif mark == "=" and "-" in now:
            now = {"file": now["file"]}
        now[mark] = text
    return found


def squeeze(text):
    return re.sub(r"\s+", " ", text).strip()


def blanked(text):
    """The text with comments and preprocessor lines as `\\x01` and the insides of literals as `\\x02`."""
    # Strings and comments in one walk, so that neither hides in the other.
    walk = re.compile(
        r"(?P<comment>//[^\n]*|/\*.*?\*/)"
        r'|(?P<raw>\$*"""(?:.|\n)*?""")'
        r'|(?P<verbatim>(?:\$@|@\$|@)"(?:[^"]|"")*")'
        r'|(?P<string>\$?"(?:\\.|[^"\\\n])*")'
        r"|(?P<character>'(?:\\.|[^'\\\n])+')"
        r"|(?P<preprocessor>^[ \t]*#(?:[^\n\\]|\\\n|\\.)*)",
        re.S | re.M,
    )
    def blank(match):
        mark = "\x01" if match.lastgroup in ("comment", "preprocessor") else "\x02"
        return "".join(c if c == "\n" else mark for c in match.group())

    return walk.sub(blank, text)


OPERATORS = ("&&", "||", " < ", " <= ", " > ", " >= ", " == ", " != ")


def region(code, at, length, stops):
    """The expression around code[at:at+length], up to the nearest of: a bracket that is not closed within, a comma, a
    semicolon, an assignment, `return`, `?`, `:` and what `stops` names."""
    depth, start = 0, at
    while start > 0:
        c = code[start - 1]
        if c in CLOSING:
            depth += 1
        elif c in OPENING:
            if depth == 0:
                break
            depth -= 1
        elif depth == 0:
            if c in ",;?\x01" or (c == ":" and code[start - 2] != ":" and code[start] != ":"):
                break
            if c == "=" and code[start - 2] not in "=!<>" and code[start] not in "=>":
                break
            if c == ">" and code[start - 2] in "=":  # a C# lambda; in C++, never
                break
            if any(code.startswith(stop, start - len(stop)) for stop in stops):
                break
            if re.search(r"\b(return|case|throw|else|in|await|yield|new)\s$", code[max(0, start - 8) : start]):
                break
        start -= 1
    depth, end = 0, at + length
    while end < len(code):
        c = code[end]
        if c in OPENING:
            depth += 1
        elif c in CLOSING:
            if depth == 0:
                break
            depth -= 1
        elif depth == 0:
            if c in ",;?\x01" or (c == ":" and code[end + 1] != ":" and code[end - 1] != ":"):
                break
            if any(code.startswith(stop, end) for stop in stops):
                break
        end += 1
    while start < at and code[start] in " \n":
        start += 1
    while end > at + length and code[end - 1] in " \n":
        end -= 1
    return start, end


def closing(code, opening):
    depth = 0
    for i in range(opening, len(code)):
        if code[i] in OPENING:
            depth += 1
        elif code[i] in CLOSING:
            depth -= 1
            if depth == 0:
                return i
    return -1


CALLS = {
    r"std::min\b": "std::max",
    r"std::max\b": "std::min",
    r"Math\.Min\b": "Math.Max",
    r"Math\.Max\b": "Math.Min",
    r"Math\.Ceiling\b": "Math.Floor",
    r"\bfminf\b": "fmaxf",
    r"\bfmaxf\b": "fminf",
    r"hn::Add\b": "hn::Sub",
    r"hn::Sub\b": "hn::Add",
    r"hn::Mul\b": "hn::Add",
    r"hn::Min\b": "hn::Max",
    r"hn::Max\b": "hn::Min",
    r"hn::MulAdd\b": "hn::NegMulAdd",
    r"hn::NegMulAdd\b": "hn::MulAdd",
    r"hn::MulSub\b": "hn::MulAdd",
    r"hn::Lt\b": "hn::Le",
    r"hn::Le\b": "hn::Lt",
    r"hn::Gt\b": "hn::Ge",
    r"hn::Ge\b": "hn::Gt",
    r"hn::And\b": "hn::Or",
    r"hn::Or\b": "hn::And",
    r"\bdiv_up\b": "div_down_in_mutation",
    r"\bround_up\b": "round_down_in_mutation",
}

# Statements of which each is taken out: what orders threads.
ORDER = {
    "barrier": r"__syncthreads\(\);",
    "warp": r"__syncwarp\(\);",
    "wait": r"cp_async_wait_all\(\);",
}


def find(file, text):
    """All mutations of a file, of which some overlap."""
    csharp = file.endswith(".cs")
    code = blanked(text)
    found = []

    def add(kind, start, end, after, statement=False):
        before, covered = text[start:end], code[start:end]
        if start >= end or before == after or "\x01" in covered or "\n\n" in before:
            return
        if not statement and re.search(r"[{};]|\[&|\[=|\bis\b|\bout\b|\bdefault\b|=>|<<", covered):
            return
        lines = text[text.rfind("\n", 0, start) + 1 : text.find("\n", end)]
        constant = r"\bconst (int|long|string|float|double)\b"
        if not csharp:
            constant = r"constexpr|alignas|^\s*(template|using)\b"
        if re.search(constant + r"|static_assert|RFN_SHARED|__launch_bounds__", lines, re.M):
            return
        found.append(Mutation(file, kind, text.count("\n", 0, start) + 1, start, end, before, after, statement))

    def replaced(start, end, at, length, by):
        return text[start:at] + by + text[at + length : end]

    for match in re.finditer(r" (<|<=|>|>=|==|!=) ", code):
        by = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}[match[1]]
        start, end = region(code, match.start(), len(match[0]), ("&&", "||"))
        add("comparison", start, end, replaced(start, end, match.start(1), len(match[1]), by))

    for match in re.finditer(r"(?<=[\w)\]]) ([+\-*/%]) (?=[\w(!])", code):
        by = {"+": "-", "-": "+", "*": "/", "/": "*", "%": "/"}[match[1]]
        start, end = region(code, match.start(), len(match[0]), OPERATORS)
        add("arithmetic", start, end, replaced(start, end, match.start(1), 1, by))

    for match in re.finditer(r" (&&|\|\|) ", code):
        start, end = region(code, match.start(), len(match[0]), ())
        add("logic", start, end, replaced(start, end, match.start(1), 2, "||" if match[1] == "&&" else "&&"))

    for match in re.finditer(r"(?<![\w.])\d+(?![\w.'])", code):
        if int(match[0]) > 1 << 20:
            continue
        start, end = region(code, match.start(), len(match[0]), OPERATORS)
        add("off by one", start, end, replaced(start, end, match.start(), len(match[0]), str(int(match[0]) + 1)))

    for match in re.finditer(r"(?<![\w)\]=!<>&|+*/%-])(!|-)(?=[A-Za-z_(])", code):
        start, end = region(code, match.start(), 1, OPERATORS)
        kind = "negation" if match[1] == "!" else "sign"
        add(kind, start, end, replaced(start, end, match.start(), 1, ""))

    for pattern, by in CALLS.items():
        for match in re.finditer(pattern, code):
            opening = match.end()
            if code[opening : opening + 1] == "<":
                opening = code.find(">", opening) + 1
            within_a_name = re.search(r"[\w.]$", code[max(0, match.start() - 1) : match.start()])
            if code[opening : opening + 1] != "(" or within_a_name:
                continue
            end = closing(code, opening) + 1
            add("call", match.start(), end, by + text[match.end() : end])

    for match in re.finditer(r"\b(?:if|while) \(", code):
        opening = match.end() - 1
        end = closing(code, opening)
        add("condition", opening + 1, end, "false")
        if match[0].startswith("if"):
            add("condition", opening + 1, end, "true")

    for match in re.finditer(r"(?<=[\w)\]]) \? ", code):
        start, end = region(code, match.start(), 0, ())
        add("condition", start, end, f"!({text[start:end]})")

    # Statements of a line of their own, or after an `if (…)`: assignments and calls.
    line = r"^[ \t]*(?P<before>(?:(?:else )?if \([^\n]*\) )?)(?P<statement>[^\n]*;)[ \t]*$"
    no_statement = (
        r"(return|break|continue|goto|throw|delete|using|else|for|while|do|case|default|if|yield|var|const|static)\b"
        r"|[{}]"
    )
    for match in re.finditer(line, code, re.M):
        statement = match["statement"]
        start, end = match.start("statement"), match.end("statement")
        if re.match(no_statement, statement):
            continue
        if re.match(r"(HWY|RFN)_[A-Z_]+\b|Argument\w*Exception\.ThrowIf|ObjectDisposedException\.", statement):
            continue
        if statement.count("(") != statement.count(")") or "\x01" in statement or "{" in statement or "}" in statement:
            continue
        previous = code[: match.start()].rstrip(" \n\x01")
        if previous and previous[-1] not in ";{})" and not previous.endswith("else"):
            continue  # goes on from the line before
        if previous.endswith(")") and match["before"] == "":
            continue  # perhaps the end of a longer head
        assignment = re.match(r"[\w.:\->\[\]()*+ ]*?[\w\])] (=|\+=|-=|\*=|/=|\|=) ", statement)
        call = re.match(r"[\w.:]*(->[\w.:]+)?\w(<[\w:, ]*>)?\(", statement)
        if assignment and not re.match(r"[\w:<>,*&? ]+[\w>*&\]] [*&]?\w+ = ", statement):
            operator = assignment[1]
            if operator in ("+=", "-="):
                at = start + assignment.start(1)
                for by in ("-=" if operator == "+=" else "+=", "="):
                    add("accumulate", start, end, replaced(start, end, at, 2, by), True)
            add("skip", start, end, ";", True)
        elif call and not any(re.match(pattern, statement) for pattern in ORDER.values()):
            add("skip", start, end, ";", True)

    for kind, pattern in ORDER.items():
        for match in re.finditer(pattern, code):
            add(kind, match.start(), match.end(), ";", True)
    for match in re.finditer(r"__syncthreads_or\(", code):
        end = closing(code, match.end() - 1) + 1
        add("vote", match.start(), end, text[match.end() - 1 : end])
    return found


def by_hand(file, text, listed):
    """Those of chosen.txt."""
    found = []
    for record in listed:
        before, after = record["-"], record["+"]
        if record["file"] != file:
            continue
        # Line breaks and indentation are the formatter's.
        match = re.search(r"\s+".join(re.escape(word) for word in before.split()), text)
        if match is None:
            print(f"chosen.txt: '{before}' is not in {file} any more", file=sys.stderr)
            continue
        line = text.count("\n", 0, match.start()) + 1
        statement = before.endswith(";")
        found.append(Mutation(file, "by hand", line, match.start(), match.end(), match.group(), after, statement))
    return found


def choose(found, count, seed, listed=()):
    """`count` of them, none within another, in an order that only the seed and each mutation's key decide. What is
    listed by hand and what orders threads comes on top: each of it."""
    order = set(ORDER) | {"vote", "by hand"}

    def rank(mutation):
        return hashlib.sha256(f"{seed}\t{mutation.key}\t{mutation.line}".encode()).digest()

    drawn = list(listed) + sorted(found, key=lambda m: (m.kind not in order, rank(m)))
    chosen, keys = [], set()
    for mutation in drawn:
        if mutation.kind not in order and sum(m.kind not in order for m in chosen) >= count:
            break

        def overlaps_with(other):
            same_place = (mutation.kind, mutation.start, mutation.end) == ("by hand", other.start, other.end)
            return mutation.start < other.end and other.start < mutation.end and not same_place

        overlaps = any(overlaps_with(other) for other in chosen)
        if overlaps or (mutation.key in keys and mutation.kind not in order):
            continue
        keys.add(mutation.key)
        chosen.append(mutation)
    return sorted(chosen, key=lambda m: m.start)


def switched(text, numbered, active):
    """The text with each mutation behind a switch; lines keep their numbers. `numbered`: (number, mutation)."""
    parts, place = [], 0
    places = {}
    for number, m in numbered:
        places.setdefault((m.start, m.end), []).append((number, m))
    for (start, end), here in sorted(places.items()):
        parts.append(text[place:start])
        now = text[start:end]
        for number, m in here:
            after = m.after.replace("\n", " ")
            if m.statement:
                now = f"{{ if ({active(number)}) {{ {after} }} else {{ {now} }} }}"
            else:
                now = f"({active(number)} ? ({after}) : ({now}))"
        parts.append(now)
        place = end
    parts.append(text[place:])
    return "".join(parts)
