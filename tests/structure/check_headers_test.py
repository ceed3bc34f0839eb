# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""check_headers.py finds each kind of violation, and nothing in a tree that has none."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

from check_headers import LICENSE, violations

UMBRELLA = "blockattn/blockattn.hpp"


def header(*includes):
    return "\n".join([LICENSE, "#pragma once", *(f"#include {i}" for i in includes), "/// A.", ""])


GOOD = {
    UMBRELLA: header("<blockattn/cpu/run.hpp>", "<blockattn/kv/store.hpp>"),
    "blockattn/core/index.hpp": header("<cstdint>"),
    "blockattn/core/eigen_executor.hpp": header("<blockattn/core/index.hpp>"),
    "blockattn/mask/mask.hpp": header("<blockattn/core/index.hpp>"),
    "blockattn/rope/rope.hpp": header("<blockattn/core/index.hpp>"),
    "blockattn/attention/segment.hpp": header("<blockattn/rope/rope.hpp>"),
    "blockattn/cpu/run.hpp": header("<blockattn/mask/mask.hpp>", "<xsimd/xsimd.hpp>"),
    "blockattn/kv/store.hpp": header("<blockattn/attention/segment.hpp>"),
    "blockattn/cuda/kernel.cuh": header("<cuda_runtime.h>", "<blockattn/core/index.hpp>"),
}


class CheckHeaders(unittest.TestCase):
    def violations_with(self, changes):
        with tempfile.TemporaryDirectory() as directory:
            self.write(pathlib.Path(directory), {**GOOD, **changes})
            return list(violations(pathlib.Path(directory)))

    @staticmethod
    def write(directory, headers):
        for name, text in headers.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def expect(self, changes, *messages):
        self.assertEqual(self.violations_with(changes), list(messages))

    def expect_include(self, name, include, message):
        text = GOOD[name].replace("#pragma once\n", f"#pragma once\n#include {include}\n")
        self.expect({name: text}, message)

    def test_good_tree(self):
        self.expect({})

    def test_direction(self):
        for name, included, room in [
            ("blockattn/core/index.hpp", "blockattn/mask/mask.hpp", "core"),
            ("blockattn/mask/mask.hpp", "blockattn/rope/rope.hpp", "mask"),
            ("blockattn/rope/rope.hpp", "blockattn/attention/segment.hpp", "rope"),
            ("blockattn/kv/store.hpp", "blockattn/cpu/run.hpp", "kv"),
            ("blockattn/cuda/kernel.cuh", "blockattn/cpu/run.hpp", "cuda"),
            ("blockattn/cpu/run.hpp", "blockattn/kv/store.hpp", "cpu"),
            ("blockattn/mask/mask.hpp", "blockattn/blockattn.hpp", "mask"),
        ]:
            with self.subTest(name=name, included=included):
                self.expect_include(name, f"<{included}>", f"{name}: {room} may not include {included}")

    def test_includes(self):
        mask = "blockattn/mask/mask.hpp"
        self.expect_include(mask, "<blockattn/core/gone.hpp>",
                            f"{mask}: includes blockattn/core/gone.hpp, which does not exist")
        self.expect_include(mask, '"other.hpp"', f'{mask}: includes "other.hpp" in quotes, headers '
                                                 "are included as <blockattn/...>")
        for cuda in ["cuda_runtime.h", "cuda_fp16.h", "cublas_v2.h", "cub/cub.cuh", "mma.h"]:
            self.expect_include(mask, f"<{cuda}>",
                                f"{mask}: includes {cuda}, only .cuh files may need CUDA")

    def test_unknown_room(self):
        name = "blockattn/misc/misc.hpp"
        self.expect({name: header(), UMBRELLA: GOOD[UMBRELLA] + f"#include <{name}>\n"},
                    f"{name}: room misc is not in the design")

    def test_umbrella(self):
        self.expect({"blockattn/core/range.hpp": header()},
                    f"blockattn/core/range.hpp: must be reached from {UMBRELLA}")
        adaptor = "blockattn/core/eigen_executor.hpp"
        self.expect({UMBRELLA: GOOD[UMBRELLA] + f"#include <{adaptor}>\n"},
                    f"{adaptor}: must not be reached from {UMBRELLA}")

    def test_form(self):
        name = "blockattn/mask/mask.hpp"
        good = GOOD[name]
        self.expect({name: good.replace(LICENSE, "// Mine.")},
                    f"{name}: does not start with the licence line")
        self.expect({name: good.replace("#pragma once\n", "")}, f"{name}: has no #pragma once")
        self.expect({name: good.replace("/// A.", "// A.")}, f"{name}: has no documentation comment")
        lines = good.count("\n")
        self.expect({name: good + "\n" * (500 - lines)})
        self.expect({name: good + "\n" * (501 - lines)},
                    f"{name}: has 501 lines, at most 500 are allowed")

    def test_exit_status(self):
        with tempfile.TemporaryDirectory() as directory:
            script = pathlib.Path(__file__).with_name("check_headers.py")
            command = [sys.executable, "-B", script, directory]
            include = pathlib.Path(directory) / "include"
            self.assertNotEqual(subprocess.run(command, capture_output=True).returncode, 0)
            self.write(include, GOOD)
            self.assertEqual(subprocess.run(command, capture_output=True).returncode, 0)
            self.write(include, {"blockattn/core/range.hpp": header()})
            self.assertEqual(subprocess.run(command, capture_output=True).returncode, 1)


if __name__ == "__main__":
    unittest.main()
