#!/usr/bin/env python3
"""notices.py: from `cargo metadata` on standard input to the notices of all that the program is linked from, on standard
output: holders of copyrights and texts of licences, each text once. Sources of crates are cargo's, those of SPDK and of
what is linked from its tree are in SPDK_SOURCE.
notices.py check BILL NOTICES: whether each part of the bill of materials (sbom.py) is in the notices, with a text.
"""

import json
import os
import pathlib
import re
import sys

import sbom

NAMES = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
HOLDER = re.compile(r"Copyright.*?(\(c\)|©|\d{4}).*", re.IGNORECASE)
SOURCES = {".c", ".h", ".S", ".asm"}

# Linked parts of SPDK's tree: name, files with the licence, and directories of the sources that name the holders of
# copyrights, where the licence does not.
PARTS = (
    ("spdk", ["LICENSE"], ["lib", "module", "include"]),
    ("dpdk", ["dpdk/license/bsd-3-clause.txt", "dpdk/license/bsd-2-clause.txt", "dpdk/license/isc.txt"], ["dpdk/lib", "dpdk/drivers/bus", "dpdk/drivers/mempool", "dpdk/drivers/common"]),
    ("isa-l", ["isa-l/LICENSE"], []),
    ("isa-l_crypto", ["isa-l-crypto/LICENSE"], []),
    ("libvfio-user", ["libvfio-user/LICENSE"], ["libvfio-user/lib", "libvfio-user/include"]),
)

# Texts for crates that come without one, where no other crate of the same repository has one.
COMMON = {"Apache-2.0": "/usr/share/common-licenses/Apache-2.0", "MPL-2.0": "/usr/share/common-licenses/MPL-2.0"}


def holders(root, directories):
    """Lines that name holders of copyrights in the sources, each once."""
    found = set()
    for directory in directories:
        for path in (root / directory).rglob("*"):
            if path.suffix not in SOURCES or not path.is_file():
                continue
            for line in path.read_text(errors="replace").splitlines()[:40]:
                if match := HOLDER.search(line):
                    found.add(match[0].strip().rstrip("*/ ").strip())
    return sorted(found)


def texts_of_crate(package):
    directory = pathlib.Path(package["manifest_path"]).parent
    files = sorted(path for path in directory.iterdir() if path.is_file() and NAMES.match(path.name))
    if package.get("license_file"):
        files.append(directory / package["license_file"])
    return [path.read_text(errors="replace").strip() for path in files]


def main():
    metadata = json.load(sys.stdin)
    reached = sbom.linked(metadata)
    source = pathlib.Path(os.environ["SPDK_SOURCE"])
    texts, lines, bare, of_repository = {}, [], [], {}
    for name, files, directories in PARTS:
        missing = [file for file in files if not (source / file).is_file()]
        if missing:
            sys.exit(f"notices.py: {source}/{missing[0]}, the licence of {name}, is missing: SPDK_SRC names SPDK's source")
        text = "\n\n".join((source / file).read_text(errors="replace").strip() for file in files)
        texts.setdefault(text, []).append(name)
        lines.append(f"{name}: BSD-3-Clause")
        lines += [f"    {holder}" for holder in holders(source, directories)]
    for package in sorted(metadata["packages"], key=lambda package: (package["name"], package["version"])):
        if package["id"] not in reached or not package.get("source"):
            continue
        name = f"{package['name']} {package['version']}"
        licence = (package.get("license") or "see its text").replace("/", " OR ")
        lines.append(f"{name}: {licence}")
        found = texts_of_crate(package)
        if not found:
            bare.append((name, licence, package["repository"]))
            lines += [f"    Copyright {author}" for author in package["authors"]]
        for text in found:
            texts.setdefault(text, []).append(name)
        if found:
            of_repository[package["repository"]] = found
    for name, licence, repository in bare:
        common = [pathlib.Path(file).read_text().strip() for known, file in COMMON.items() if known in licence]
        found = of_repository.get(repository, common)
        if not found:
            sys.exit(f"notices.py: {name} ({licence}) comes without the text of its licence")
        for text in found:
            texts.setdefault(text, []).append(name)
    print("opi-spdk is linked from the following parts, and from Rust's standard library (MIT OR Apache-2.0, Copyright The")
    print("Rust Project Contributors). The texts of their licences are below.\n")
    print("\n".join(lines))
    for text, names in texts.items():
        print(f"\n{'-' * 120}\n{', '.join(names)}:\n\n{text}")


def check(bill, notices):
    parts = json.loads(pathlib.Path(bill).read_text())["components"]
    head, *texts = pathlib.Path(notices).read_text().split(f"\n{'-' * 120}\n")
    named = {line.split(":")[0] for line in head.splitlines()}
    with_text = {name for text in texts for name in text.split(":\n", 1)[0].split(", ")}
    names = [f"{part['name']} {part['version']}" if "purl" in part else part["name"] for part in parts]
    bare = [name for name in names if name not in named or name not in with_text]
    if bare or not names:
        sys.exit(f"{notices}: without notice or text: {bare or 'everything'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(*sys.argv[2:])
    else:
        main()
