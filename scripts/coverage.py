#!/usr/bin/env python3
"""coverage.py LCOV FOLDER LEAST [--lines]: shows how much of FOLDER's lines were reached, without those of the
tests in it (a file's last module, and files of tests). Exit status 1 below LEAST percent."""

import collections
import pathlib
import sys


def tests_begin(path):
    lines = pathlib.Path(path).read_text().splitlines()
    pairs = enumerate(zip(lines, lines[1:]), 1)
    return next((n for n, pair in pairs if pair == ("#[cfg(test)]", "mod tests {")), len(lines) + 1)


def main():
    report, folder, least = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), float(sys.argv[3])
    files = collections.defaultdict(dict)
    path = None
    for line in pathlib.Path(report).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "SF":
            path = value
        elif key == "DA":
            number, count = map(int, value.split(",")[:2])
            files[path][number] = max(count, files[path].get(number, 0))
    reached = total = 0
    for path in sorted(files):
        where = pathlib.Path(path)
        if folder not in where.parents or "tests" in where.with_suffix("").parts[-2:]:
            continue
        end = tests_begin(path)
        lines = {number: count for number, count in files[path].items() if number < end}
        missed = sorted(number for number, count in lines.items() if count == 0)
        reached, total = reached + len(lines) - len(missed), total + len(lines)
        name = where.relative_to(folder)
        share = 100 * (1 - len(missed) / len(lines)) if lines else 100
        print(f"{share:6.1f} %  {len(lines):5} lines  {name}")
        if "--lines" in sys.argv[4:]:
            source = where.read_text().splitlines()
            for number in missed:
                print(f"          {name}:{number}: {source[number - 1].strip()}")
    share = 100 * reached / total if total else 0
    print(f"{share:6.1f} %  {total:5} lines  all; {least:g} % must be reached")
    return share < least


sys.exit(main())
