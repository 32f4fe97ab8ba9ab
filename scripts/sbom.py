#!/usr/bin/env python3
"""sbom.py: from `cargo metadata` on standard input to a CycloneDX bill of materials on standard output.

Of crates only those that the program is linked from count, not those of tests and build scripts alone. What
comes in SPDK's tree has the versions of that tree where an installed SPDK (SPDK_PREFIX) tells them.
"""

import json
import os
import pathlib
import sys

# What SPDK's build links from its tree: name, licence, and its pkg-config file, which tells the version.
IN_SPDK = (
    ("dpdk", "BSD-3-Clause", "libdpdk"),
    ("isa-l", "BSD-3-Clause", "libisal"),
    ("isa-l_crypto", "BSD-3-Clause", "libisal_crypto"),
    ("intel-ipsec-mb", "BSD-3-Clause", None),
    ("libvfio-user", "BSD-3-Clause", None),
)


def pkg_version(prefix, name):
    for file in pathlib.Path(prefix).rglob(f"{name}.pc") if prefix and name else ():
        for line in file.read_text().splitlines():
            if line.startswith("Version:"):
                return line.split(":", 1)[1].strip()
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
    for name, licence, file in IN_SPDK:
        parts.append(component(name, pkg_version(os.environ.get("SPDK_PREFIX"), file), licence))
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
