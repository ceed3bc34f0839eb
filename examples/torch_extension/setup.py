# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Builds block_attention for the CPU of this machine and, where there is an nvcc, for the CUDA devices that torch sees
or TORCH_CUDA_ARCH_LIST names. Needs torch, g++ 12 or newer and xsimd:
    pip install --no-build-isolation examples/torch_extension
"""

import os

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

with_cuda = CUDA_HOME is not None and (torch.cuda.is_available() or "TORCH_CUDA_ARCH_LIST" in os.environ)
sources = ["bindings.cpp", "cpu_attention.cpp"]
# Compiled with OpenMP but not linked to it: the threads are those of the runtime that torch has loaded.
flags = ["-std=c++20", "-O3", "-g0", "-march=native", "-fvisibility=hidden", "-fopenmp",
         "-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # GCC bug 105593, with AVX-512
if with_cuda:
    sources.append("cuda_attention.cu")
    flags.append("-DBLOCK_ATTENTION_CUDA")

setup(
    name="block_attention",
    version="0.1.0",
    description="Block attention for PyTorch, by blockattn",
    py_modules=["block_attention"],
    ext_modules=[
        (CUDAExtension if with_cuda else CppExtension)(
            "_block_attention", sources,
            include_dirs=[os.path.abspath("../../include")],
            extra_compile_args={"cxx": flags, "nvcc": ["-std=c++20", "-O3"]})
    ],
    cmdclass={"build_ext": BuildExtension},
)
