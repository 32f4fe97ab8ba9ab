#!/usr/bin/env python3
"""spdk-changes.py TREE: applies spdk/changes/ to the SPDK source tree TREE, all of them or none.

A change is one file, NAME.change: fields, a line of ---, and hunks. A hunk is a diff without line
numbers; its place is a function (or another block whose first line starts so) of a file:

    title: H2CData stays inside its buffer
    why:   the sum of offset and length wraps in 32 bits
    lines: H2 A4
    test:  tests/wire_tcp.rs h2c_data_beyond_its_buffer
    ---
    @@ lib/nvmf/tcp.c nvmf_tcp_h2c_data_hdr_handle
     a line that stays
    -a line that goes
    +a line that comes

Without a second word the place is the whole file. The lines that stay or go must be there in that
order, exactly once in that place, indentation aside; otherwise nothing is changed, and the error names
the change, the place and the lines. `optional: FILE` leaves the change out where the tree has no FILE.

Headers of hooks (spdk/changes/include) go to include/opi of SPDK and of libvfio-user. What has been
applied is told by include/opi/changes.h. A file whose content stays as it is is not written, so that
make builds no more than it has to.
"""

import pathlib
import re
import sys

CHANGES = pathlib.Path(__file__).resolve().parent.parent / "spdk" / "changes"
FIELDS = ("title", "why", "lines", "test")
HEADER_DIRS = ("include/opi", "libvfio-user/include/opi")


class Failure(Exception):
    pass


class Hunk:
    def __init__(self, change, file, scope):
        self.change, self.file, self.scope, self.lines = change, file, scope, []

    def fail(self, what):
        place = f"{self.file}{' ' + self.scope if self.scope else ''}"
        wanted = "\n".join("    " + text for mark, text in self.lines if mark != "+")
        raise Failure(f"{self.change}: {place}: {what}\n{wanted}")

    def apply(self, text):
        lines = text.split("\n")
        first, last = self.block(lines)
        wanted = [line.strip() for mark, line in self.lines if mark != "+"]
        if not wanted:
            self.fail("the hunk names no line that stays or goes")
        starts = [
            at
            for at in range(first, last - len(wanted) + 2)
            if all(lines[at + n].strip() == line for n, line in enumerate(wanted))
        ]
        if len(starts) != 1:
            self.fail(f"these lines are there {len(starts)} times, and must be once:")
        at, result = starts[0], []
        for mark, line in self.lines:
            if mark == "+":
                result.append(line)
            else:
                if mark == " ":
                    result.append(lines[at])
                at += 1
        return "\n".join(lines[: starts[0]] + result + lines[at:])

    def block(self, lines):
        """First and last line of the scope: from its name at the start of a line to the next closing brace there."""
        if not self.scope:
            return 0, len(lines) - 1
        name = re.compile(re.escape(self.scope) + r"(?!\w)")
        found = []
        for at, line in enumerate(lines):
            if name.match(line):
                end = next((n for n in range(at, len(lines)) if lines[n].startswith("}")), None)
                body = next((n for n in range(at, len(lines)) if lines[n].rstrip().endswith(("{", ";"))), None)
                # A declaration ends before any brace.
                if end is not None and body is not None and lines[body].rstrip().endswith("{"):
                    found.append((at, end))
        if len(found) != 1:
            self.fail(f"this place is there {len(found)} times, and must be once; looked for:")
        return found[0]


def parse(path):
    head, _, body = path.read_text().partition("\n---\n")
    fields, key = {}, None
    for line in head.splitlines():
        if line[:1] in " \t":
            fields[key] += " " + line.strip()
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    for field in FIELDS:
        if not fields.get(field):
            raise Failure(f"{path.name}: the field '{field}:' is missing")
    hunks = []
    for line in body.splitlines():
        if line.startswith("@@ "):
            words = line.split(None, 2)
            hunks.append(Hunk(path.name, words[1], words[2] if len(words) > 2 else ""))
        elif hunks:
            if line[:1] not in ("+", "-", " ", ""):
                raise Failure(f"{path.name}: a line of a hunk begins with '+', '-' or a space, not: {line}")
            hunks[-1].lines.append((line[:1] or " ", line[1:]))
        elif line.strip():
            raise Failure(f"{path.name}: before the first '@@ FILE [PLACE]': {line}")
    for hunk in hunks:
        # Blank lines between hunks are not part of them.
        while hunk.lines and hunk.lines[-1] == (" ", ""):
            hunk.lines.pop()
    return fields, hunks


def write(path, text):
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main(tree):
    texts, applied = {}, []
    for path in sorted(CHANGES.glob("*.change")):
        fields, hunks = parse(path)
        if "optional" in fields and not (tree / fields["optional"]).exists():
            continue
        for hunk in hunks:
            file = tree / hunk.file
            if file not in texts:
                if not file.is_file():
                    hunk.fail("the tree has no such file; looked there for:")
                texts[file] = file.read_text()
            texts[file] = hunk.apply(texts[file])
        applied.append(path.stem)
    for header in sorted((CHANGES / "include").glob("*.h")):
        for folder in HEADER_DIRS:
            texts[tree / folder / header.name] = header.read_text()
    names = "".join(f' \\\n\t"{name}\\n"' for name in applied)
    texts[tree / HEADER_DIRS[0] / "changes.h"] = (
        "/* Which changes of spdk/changes/ this SPDK was built with. */\n"
        "#pragma once\n"
        f"#define OPI_SPDK_CHANGES {len(applied)}\n"
        f"#define OPI_SPDK_CHANGE_NAMES{names}\n"
    )
    for file, text in texts.items():
        write(file, text)
    print(f"{len(applied)} changes applied to {len(texts)} files")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(pathlib.Path(sys.argv[1]))
    except Failure as failure:
        sys.exit(f"SPDK's source is left as it is: {failure}")
