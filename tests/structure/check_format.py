#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Says which sources clang-format would write otherwise; changes none.

Usage: check_format.py REPOSITORY. Uses clang-format 14.0.6 and no other version, because each formats in its own way:
the system's, or PyPI's, which it installs in REPOSITORY/build/clang-format. Exit status 1 if a source differs.
"""

import concurrent.futures
import pathlib
import subprocess
import sys

VERSION = "14.0.6"
SUFFIXES = (".hpp", ".cpp", ".cuh", ".cu")


def is_pinned(program):
    """Whether `program` is a clang-format of the pinned version."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return f"version {VERSION}" in text


def find_clang_format(repository):
    environment = repository / "build" / "clang-format"
    installed = environment / "bin" / "clang-format"
    for program in ("clang-format", "clang-format-14", str(installed)):
        if is_pinned(program):
            return program
    print(f"Installing clang-format {VERSION} in {environment}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet",
                    "--disable-pip-version-check", f"clang-format=={VERSION}"], check=True)
    return str(installed)


def sources(repository):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True,
                            check=True).stdout
    names = [name for name in listed.split("\0") if name.endswith(SUFFIXES)]
    return [name for name in names if (repository / name).is_file()]


def differs(clang_format, path):
    # Not --dry-run, which also reports replacements of a text by itself.
    formatted = subprocess.run([clang_format, path.name], cwd=path.parent, capture_output=True, check=True).stdout
    return formatted != path.read_bytes()


def main():
    repository = pathlib.Path(sys.argv[1]).resolve()
    clang_format = find_clang_format(repository)
    names = sources(repository)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        different = pool.map(lambda name: differs(clang_format, repository / name), names)
        found = [name for name, is_different in zip(names, different) if is_different]
    for name in found:
        print(f"{name}: differs from what clang-format {VERSION} writes: clang-format -i {name}")
    print(f"{len(found)} of {len(names)} sources differ")
    sys.exit(1 if found or not names else 0)


if __name__ == "__main__":
    main()
