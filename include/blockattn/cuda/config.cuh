// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/config.hpp>

/// \file
/// What the CUDA headers need: nvcc 12.4 or newer, C++20, and devices of compute capability 8.0 or
/// more. attend_blocks passes 16 KiB of kernel parameters, which takes a driver of release 530 or
/// newer.

#if !defined(__CUDACC__)
#error "blockattn/cuda headers are compiled by nvcc: include them from a .cu file"
#elif __CUDACC_VER_MAJOR__ < 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ < 4)
#error "blockattn/cuda needs nvcc 12.4 or newer"
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "blockattn/cuda needs compute capability 8.0 or more: compile with -arch=sm_80 or later"
#endif
