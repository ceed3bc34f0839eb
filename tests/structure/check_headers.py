#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Checks what the compiler does not: the dependency direction and the form of the public headers.

Usage: check_headers.py REPOSITORY. Prints one line for each violation; exit status 1 if there are any.
"""

import pathlib
import re
import sys

# A room may include itself, the rooms named here, and what those may include.
USES = {
    "core": [],
    "layout": ["core"],
    "mask": ["layout"],
    "plan": ["mask"],
    "softmax": ["core"],
    "rope": ["core"],
    "attention": ["plan", "softmax", "rope"],
    "reference": ["attention"],
    "cpu": ["attention"],
    "cuda": ["attention", "distill"],
    "segment": ["core"],
    "distill": ["core"],
    "kv": ["attention", "layout", "rope"],
}
MOST_LINES = 500
UMBRELLA = "blockattn/blockattn.hpp"
# Included by name, because they need another library or a compiler flag.
OUTSIDE_UMBRELLA = {"blockattn/core/eigen_executor.hpp", "blockattn/core/openmp_executor.hpp"}

LICENSE = "// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0"
INCLUDE = re.compile(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")', re.MULTILINE)
CUDA = re.compile(r"^(cuda|cu[a-z]+_v2|cub/|cublas|cudnn|cute/|cutlass/|thrust/|nv/|nvtx|mma\.h|"
                  r"cooperative_groups)|\.cuh$")


def visible_rooms(room):
    """The rooms that `room` may include."""
    rooms = {room}
    for used in USES[room]:
        rooms |= visible_rooms(used)
    return rooms


def room_of(name):
    """The folder below blockattn/ of a header, None for the umbrella."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 else None


def check_form(name, text):
    lines = text.count("\n")
    if not text.startswith(LICENSE + "\n"):
        yield f"{name}: does not start with the licence line"
    if "#pragma once" not in text:
        yield f"{name}: has no #pragma once"
    if not re.search(r"^\s*///", text, re.MULTILINE):
        yield f"{name}: has no documentation comment"
    if lines > MOST_LINES:
        yield f"{name}: has {lines} lines, at most {MOST_LINES} are allowed"


def check_includes(name, includes, headers):
    room = room_of(name)
    if room is not None and room not in USES:
        yield f"{name}: room {room} is not in the design"
        return
    for spelled in includes:
        included = spelled[1:-1]
        if spelled[0] == '"':
            yield f'{name}: includes "{included}" in quotes, headers are included as <blockattn/...>'
        elif name.endswith(".hpp") and CUDA.search(included):
            yield f"{name}: includes {included}, only .cuh files may need CUDA"
        elif included.startswith("blockattn/"):
            if included not in headers:
                yield f"{name}: includes {included}, which does not exist"
            elif room is not None and room_of(included) not in visible_rooms(room):
                yield f"{name}: {room} may not include {included}"


def check_umbrella(includes_of):
    reached = set()
    waiting = [UMBRELLA]
    while waiting:
        name = waiting.pop()
        if name in includes_of and name not in reached:
            reached.add(name)
            waiting += [spelled[1:-1] for spelled in includes_of[name]]
    for name in sorted(includes_of):
        if name.endswith(".hpp") and (name in reached) == (name in OUTSIDE_UMBRELLA):
            yield f"{name}: must {'not ' if name in reached else ''}be reached from {UMBRELLA}"


def violations(include_directory):
    files = [path for path in sorted(include_directory.rglob("*")) if path.suffix in (".hpp", ".cuh")]
    headers = {path.relative_to(include_directory).as_posix(): path.read_text() for path in files}
    includes_of = {name: INCLUDE.findall(text) for name, text in headers.items()}
    for name, text in headers.items():
        yield from check_form(name, text)
        yield from check_includes(name, includes_of[name], headers)
    yield from check_umbrella(includes_of)


def main():
    include_directory = pathlib.Path(sys.argv[1]) / "include"
    if not (include_directory / UMBRELLA).is_file():
        sys.exit(f"{include_directory / UMBRELLA} does not exist")
    found = list(violations(include_directory))
    print("\n".join(found) if found else "all headers keep the rules")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
