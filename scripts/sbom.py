#!/usr/bin/env python3
"""sbom.py: from `cargo metadata` on standard input to a CycloneDX bill of materials on standard output.

Of crates only those that the program is linked from count, not those of tests and build scripts alone. What
comes in SPDK's tree has the versions that the installed SPDK (SPDK_PREFIX) tells, or else its source (SPDK_SOURCE).
"""

import json
import os
import pathlib
import re
import sys

# What is linked from SPDK's tree, all under BSD-3-Clause: name, and the file of the prefix or the source with its
# version. (SPDK's intel-ipsec-mb is not linked: isa-l_crypto provides AES-XTS.)
IN_SPDK = (
    ("dpdk", "libdpdk.pc"),
    ("isa-l", "libisal.pc"),
    ("isa-l_crypto", "libisal_crypto.pc"),
    ("libvfio-user", "libvfio-user/meson.build"),
)

VERSION = re.compile(r"^(?:Version: *|\s*version: *')([0-9][^'\s]*)", re.MULTILINE)


def tree_version(file):
    """The version of a part of SPDK's tree, or None where neither prefix nor source is there."""
    prefix, source = os.environ.get("SPDK_PREFIX"), os.environ.get("SPDK_SOURCE")
    found = list(pathlib.Path(prefix).rglob(file)) if prefix else []
    for path in found + ([pathlib.Path(source) / file] if source else []):
        if path.is_file() and (match := VERSION.search(path.read_text())):
            return match[1]
    return None


def linked(metadata):
    """Ids of packages that the root reaches over normal dependencies."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, todo = set(), [metadata["resolve"]["root"]]
    while todo:
        package = todo.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return found


def component(name, version, licence, kind="library", purl=None):
    item = {"type": kind, "name": name, "licenses": [{"expression": licence.replace("/", " OR ")}]}
    if version:
        item["version"] = version
    if purl:
        item["purl"] = purl
    return item


def main():
    metadata = json.load(sys.stdin)
    reached = linked(metadata)
    version = os.environ["SPDK_VERSION"]
    parts = [component("spdk", version, "BSD-3-Clause")]
    # spdk_tree_hash of scripts/spdk-source.sh.
    parts[0]["properties"] = [{"name": "opi-spdk:source-tree-sha256", "value": os.environ.get("SPDK_TREE", "")}]
    for name, file in IN_SPDK:
        parts.append(component(name, tree_version(file), "BSD-3-Clause"))
    root = None
    for package in sorted(metadata["packages"], key=lambda package: (package["name"], package["version"])):
        if package["id"] not in reached:
            continue
        licence = package.get("license") or "NOASSERTION"
        if package["id"] == metadata["resolve"]["root"]:
            root = component(package["name"], package["version"], licence, "application")
        elif package.get("source"):
            purl = f"pkg:cargo/{package['name']}@{package['version']}"
            parts.append(component(package["name"], package["version"], licence, purl=purl))
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": root},
        "components": parts,
    }
    json.dump(bill, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
