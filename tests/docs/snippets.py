#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Turns the fences of README.md and docs/*.md into sources that the tests compile.

Usage: snippets.py REPOSITORY OUTPUT. Writes, where their text has changed:
    OUTPUT/fragments.cpp, fragments.cu     every ```cpp and ```cuda fence, each in a function of its own that sees the
                                           names of declarations.hpp and .cuh
    OUTPUT/cmake/PAGE_LINE/CMakeLists.txt  every ```cmake fence of docs/, in a project that has a target `engine`
    OUTPUT/first_page/                     the commands, the program and its output that README.md prints; see
                                           first_page.sh
```sh and ```python fences of docs/ must parse; fences without a language are output or formulas. Links into the repository
must lead somewhere, and README.md stays short.

A comment on the lines before a fence changes this. It stands in the page, where its author sees it:
    <!-- snippet: at file scope -->               definitions, not statements
    <!-- snippet: in the folder of the program --> commands of README.md that do not run in the clone
    <!-- snippet: not compiled: REASON -->        printed with its reason, so that nothing is left out in silence
A fence in another language, or a comment that is none of these, is an error.
"""

import ast
import pathlib
import re
import subprocess
import sys
from dataclasses import dataclass

LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
MARK = re.compile(r"^<!-- snippet: (.*) -->$")
FENCE = re.compile(r"^```(\S*)$")
FILE_SCOPE = "at file scope"
PROGRAM_FOLDER = "in the folder of the program"
NOT_COMPILED = "not compiled: "
FIRST_PAGE = "README.md"
FIRST_PAGE_LINES = 150
FIRST_PAGE_COLUMNS = 120
LICENSE = "Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0"


class PageError(Exception):
    """What is wrong with a page, and where."""


@dataclass
class Fence:
    page: str
    line: int  # of the first line inside, from 1
    language: str
    mark: str
    text: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    @property
    def name(self):
        return re.sub(r"\W", "_", f"{self.page}_{self.line}")


def fences_of(page, text):
    """The fences of a page, in order."""
    fences, mark, opened = [], "", None
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if opened:
            if line == "```":
                fences.append(opened)
                opened = None
            else:
                opened.text += line + "\n"
        elif fence:
            opened = Fence(page, number + 1, fence[1], mark, "")
            mark = ""
        elif line.startswith("```"):
            raise PageError(f"{page}:{number}: a fence is opened by ``` and one word, not by {line!r}")
        elif mark:
            raise PageError(f"{page}:{number}: the comment before this line is about no fence: {mark!r}")
        elif line.lstrip().startswith("<!-- snippet"):
            if not MARK.match(line):
                raise PageError(f"{page}:{number}: not of the form <!-- snippet: WORDS -->: {line!r}")
            mark = MARK.match(line)[1]
    if opened or mark:
        raise PageError(f"{page}: ends within a fence, or after a comment that is about one")
    return fences


def check_mark(fence):
    if fence.mark.startswith(NOT_COMPILED) and fence.mark[len(NOT_COMPILED):].strip():
        return
    allowed = {"": True,
               FILE_SCOPE: fence.language in ("cpp", "cuda"),
               PROGRAM_FOLDER: fence.language == "sh" and fence.page == FIRST_PAGE}
    if not allowed.get(fence.mark, False):
        raise PageError(f"{fence.place}: a {fence.language or 'plain'} fence cannot be {fence.mark!r}")


def is_program(fence):
    return fence.language == "cpp" and re.search(r"^int main\(", fence.text, re.MULTILINE)


def fragments(fences, declarations):
    """One translation unit. Compiler messages name the page and its line."""
    # They name more than they use, and their names hide those of the declarations.
    parts = [f"// {LICENSE}\n// Written by snippets.py.\n#include \"{declarations}\"\n\n"
             '#pragma GCC diagnostic ignored "-Wshadow"\n#pragma GCC diagnostic ignored "-Wunused-variable"\n\n'
             "namespace docs {\n"]
    for fence in fences:
        if "#include" in fence.text:
            raise PageError(f"{fence.place}: a fragment includes nothing; {declarations} does")
        scope = f"namespace {fence.name}" if fence.mark == FILE_SCOPE else f"void {fence.name}()"
        parts.append(f"{scope} {{\n#line {fence.line} \"{fence.page}\"\n{fence.text}}}\n")
    parts.append("}  // namespace docs\n")
    return "".join(parts)


def cmake_project(fence):
    """A stranger's project around a fence of docs/."""
    languages = "CXX CUDA" if "cuda" in fence.text else "CXX"
    suffix = "cu" if "cuda" in fence.text else "cpp"
    return (f"# {LICENSE}\n# {fence.place}\ncmake_minimum_required(VERSION 3.22)\nproject(engine {languages})\n"
            f"add_executable(engine engine.{suffix})\n{fence.text}")


def first_page(fences):
    """{file: text} for first_page.sh, of the fences of README.md."""
    in_clone = [f.text for f in fences if f.language == "sh" and f.mark == ""]
    in_program = [f.text for f in fences if f.language == "sh" and f.mark == PROGRAM_FOLDER]
    cmake = [f.text for f in fences if f.language == "cmake"]
    programs = [f.text for f in fences if is_program(f)]
    output = [f.text for f in fences if f.language == ""]
    for what, found in (("CMake project", cmake), ("program", programs), ("output", output),
                        ("run of commands in the folder of the program", in_program)):
        if len(found) != 1:
            raise PageError(f"{FIRST_PAGE}: has {len(found)} fences with a {what}, must have 1")
    return {"in_clone.sh": "".join(in_clone), "in_program.sh": in_program[0], "CMakeLists.txt": cmake[0],
            "engine.cpp": programs[0], "expected_output": output[0]}


def check_syntax(fence):
    """Shell and Python of the pages, which are not run."""
    if fence.language == "python":
        try:
            ast.parse(fence.text)
        except SyntaxError as error:
            raise PageError(f"{fence.page}:{fence.line + error.lineno - 1}: {error.msg}") from error
    else:
        parsed = subprocess.run(["bash", "-n"], input=fence.text, text=True, stderr=subprocess.PIPE, check=False)
        if parsed.returncode != 0:
            raise PageError(f"{fence.place}: {parsed.stderr.strip()}")


def check_links(repository, page, text):
    """Links into the repository lead somewhere."""
    for link in LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        if "://" not in link and not (repository / page).parent.joinpath(link).exists():
            raise PageError(f"{page}: links to {link}, which does not exist")


def check_size(page, text):
    """The first page stays one that is read."""
    lines = text.splitlines()
    if page == FIRST_PAGE and len(lines) >= FIRST_PAGE_LINES:
        raise PageError(f"{page}: has {len(lines)} lines, must have fewer than {FIRST_PAGE_LINES}")
    for number, line in enumerate(lines, 1):
        if page == FIRST_PAGE and len(line) > FIRST_PAGE_COLUMNS:
            raise PageError(f"{page}:{number}: has {len(line)} columns, may have {FIRST_PAGE_COLUMNS}")


def sources(pages):
    """({file: text}, fences that are not compiled) of {page: text}."""
    compiled = {"cpp": [], "cuda": []}
    files, left_out, on_first_page = {}, [], []
    for page, text in pages.items():
        for fence in fences_of(page, text):
            check_mark(fence)
            if fence.mark.startswith(NOT_COMPILED):
                left_out.append(fence)
            elif is_program(fence) and page != FIRST_PAGE:
                raise PageError(f"{fence.place}: a whole program belongs into examples/, which is compiled and run")
            elif page == FIRST_PAGE and (is_program(fence) or fence.language in ("sh", "cmake", "")):
                on_first_page.append(fence)
            elif fence.language in compiled:
                compiled[fence.language].append(fence)
            elif fence.language == "cmake":
                files[f"cmake/{fence.name}/CMakeLists.txt"] = cmake_project(fence)
            elif fence.language in ("sh", "python"):
                check_syntax(fence)
            elif fence.language not in ("", "text"):
                raise PageError(f"{fence.place}: nothing checks {fence.language}: write why it is not compiled")
    files["fragments.cpp"] = fragments(compiled["cpp"], "declarations.hpp")
    files["fragments.cu"] = fragments(compiled["cuda"], "declarations.cuh")
    for name, text in first_page(on_first_page).items():
        files[f"first_page/{name}"] = text
    return files, left_out


def main():
    repository, output = map(pathlib.Path, sys.argv[1:])
    paths = [repository / FIRST_PAGE, *sorted((repository / "docs").glob("*.md"))]
    pages = {str(path.relative_to(repository)): path.read_text(encoding="utf-8") for path in paths}
    try:
        for page, text in pages.items():
            check_size(page, text)
            check_links(repository, page, text)
        files, left_out = sources(pages)
    except PageError as error:
        return str(error)
    for name, text in files.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else make would build it again
            path.write_text(text, encoding="utf-8")
    for path in output.glob("cmake/*/CMakeLists.txt"):  # of fences that are gone
        if str(path.relative_to(output)) not in files:
            path.unlink()
    for fence in left_out:
        print(f"{fence.place}: {fence.mark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
