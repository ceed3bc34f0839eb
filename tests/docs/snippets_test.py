# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""snippets.py finds every fence, leaves none out in silence and says what is wrong with a page."""

import pathlib
import unittest

from snippets import PageError, check_links, check_size, sources

FIRST_PAGE = """# Title
```sh
install
```
```cmake
project(engine)
```
```cpp
#include <cstdio>
int main() {}
```
<!-- snippet: in the folder of the program -->
```sh
build
```
```
printed
```
"""


class Snippets(unittest.TestCase):
    def sources_with(self, page, first_page=FIRST_PAGE):
        return sources({"README.md": first_page, "docs/page.md": page})

    def refuses(self, page, words, first_page=FIRST_PAGE):
        with self.assertRaisesRegex(PageError, words):
            self.sources_with(page, first_page)

    def test_first_page(self):
        files, left_out = self.sources_with("")
        self.assertEqual(left_out, [])
        self.assertEqual(files["first_page/in_clone.sh"], "install\n")
        self.assertEqual(files["first_page/in_program.sh"], "build\n")
        self.assertEqual(files["first_page/CMakeLists.txt"], "project(engine)\n")
        self.assertEqual(files["first_page/engine.cpp"], "#include <cstdio>\nint main() {}\n")
        self.assertEqual(files["first_page/expected_output"], "printed\n")

    def test_first_page_without_its_parts(self):
        self.refuses("", "0 fences with a program", FIRST_PAGE.replace("```cpp\n#include <cstdio>\nint main() {}\n```\n", ""))
        self.refuses("", "2 fences with a output", FIRST_PAGE + "```\nmore\n```\n")
        self.refuses("", "0 fences with a run of commands", FIRST_PAGE.replace("snippet: in", "nothing: in"))

    def test_fragments_keep_their_line(self):
        files, _ = self.sources_with("text\n```cpp\nf();\n```\n```cuda\ng();\n```\n")
        self.assertIn('void docs_page_md_3() {\n#line 3 "docs/page.md"\nf();\n}\n', files["fragments.cpp"])
        self.assertIn('void docs_page_md_6() {\n#line 6 "docs/page.md"\ng();\n}\n', files["fragments.cu"])
        self.assertNotIn("g();", files["fragments.cpp"])

    def test_fragments_of_the_first_page_are_compiled_too(self):
        files, _ = self.sources_with("", FIRST_PAGE + "```cpp\nf();\n```\n")
        self.assertIn("f();", files["fragments.cpp"])

    def test_file_scope(self):
        files, _ = self.sources_with("<!-- snippet: at file scope -->\n```cpp\nstruct s {};\n```\n")
        self.assertIn("namespace docs_page_md_3 {", files["fragments.cpp"])

    def test_cmake(self):
        files, _ = self.sources_with("```cmake\nfind_package(blockattn)\n```\n```cmake\n# cuda\n```\n")
        self.assertIn("add_executable(engine engine.cpp)\nfind_package(blockattn)\n",
                      files["cmake/docs_page_md_2/CMakeLists.txt"])
        self.assertIn("project(engine CXX CUDA)", files["cmake/docs_page_md_5/CMakeLists.txt"])

    def test_what_is_left_out_has_a_reason(self):
        page = "<!-- snippet: not compiled: a sketch -->\n```cpp\n...\n```\n"
        files, left_out = self.sources_with(page)
        self.assertNotIn("...", files["fragments.cpp"])
        self.assertEqual([(f.place, f.mark) for f in left_out], [("docs/page.md:3", "not compiled: a sketch")])
        self.refuses(page.replace("a sketch", ""), "cannot be 'not compiled:")

    def test_refused(self):
        self.refuses("```rust\n```\n", "docs/page.md:2: nothing checks rust")
        self.refuses("```cpp title\nf();\n```\n", "one word")
        self.refuses("```cpp\nf();\n", "ends within a fence")
        self.refuses("```cpp\nint main() {}\n```\n", "belongs into examples")
        self.refuses("```cpp\n#include <cstdio>\n```\n", "includes nothing")
        self.refuses("```sh\nif true\n```\n", "docs/page.md:2: bash")
        self.refuses("```python\nx = 1\nx = =\n```\n", "docs/page.md:3: invalid syntax")

    def test_comments_that_mean_nothing(self):
        self.refuses("<!-- snippet: at file scope -->\ntext\n", "about no fence")
        self.refuses("<!-- snippet: at file scope -->\n```sh\n```\n", "a sh fence cannot be 'at file scope'")
        self.refuses("<!-- snippet: skip -->\n```cpp\n```\n", "cannot be 'skip'")
        self.refuses("<!-- snippet -->\n```cpp\n```\n", "not of the form")
        self.refuses("<!-- snippet: in the folder of the program -->\n```sh\n```\n", "cannot be 'in the folder")

    def test_size_of_the_first_page(self):
        check_size("README.md", ("a" * 120 + "\n") * 149)
        check_size("docs/page.md", ("a" * 121 + "\n") * 150)
        for text, words in (("a\n" * 150, "150 lines"), ("\n" + "a" * 121, "README.md:2: has 121 columns")):
            with self.assertRaisesRegex(PageError, words):
                check_size("README.md", text)

    def test_links(self):
        here = pathlib.Path(__file__).parent
        check_links(here.parent, "docs/page.md", "[a](snippets.py) [b](../docs#c) [d](#e) [f](https://none.example)")
        check_links(here.parent, "docs/page.md", "```cpp\nconst auto f = [&](int i) { return i; };\n```\n")
        with self.assertRaisesRegex(PageError, "links to none.md"):
            check_links(here.parent, "docs/page.md", "```cpp\n```\n[a](none.md)")


if __name__ == "__main__":
    unittest.main()
