# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Builds the module for the CPU of this machine, and for CUDA where torch sees a device or TORCH_CUDA_ARCH_LIST
names one and there is an nvcc. Run it in its own folder; it needs torch, setuptools, g++ 12 or newer, and xsimd."""

import os

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

with_cuda = CUDA_HOME is not None and (torch.cuda.is_available() or "TORCH_CUDA_ARCH_LIST" in os.environ)
sources = ["bindings.cpp", "cpu_attention.cpp"]
# OpenMP is torch's: linking another would give this module threads of its own.
flags = ["-std=c++20", "-O3", "-g0", "-march=native", "-fopenmp", "-fvisibility=hidden", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
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
