// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

/// \file
/// Version, compile-time configuration and the inline namespace that keeps configurations apart.

#define BLOCKATTN_VERSION_MAJOR 0
#define BLOCKATTN_VERSION_MINOR 1
#define BLOCKATTN_VERSION_PATCH 0

// A compiler goes on after an #error, into thousands of others, but stops at a header that does not
// exist: the name of this one is the message.
#if __cplusplus < 202002L
#include <blockattn needs C++20: compile with -std=c++20 or newer>
#endif

// A row that sees nothing has lse = -inf; -ffinite-math-only would let the compiler assume that
// away.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error \
    "blockattn needs infinities: compile with -fno-finite-math-only (plain -ffast-math implies it)"
#endif

// A unit with kernels that is compiled without optimisation, or for x86-64 without AVX2 and FMA, says
// so once (core/simd.hpp) unless BLOCKATTN_ACCEPT_SLOW_BUILD is defined, which changes nothing else.

// Errors are exceptions unless the translation unit is compiled without them. The choice is part of
// the inline namespace: translation units that chose differently can be linked together.
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define BLOCKATTN_HAS_EXCEPTIONS 1
#define BLOCKATTN_ABI abi_0_throws
#else
#define BLOCKATTN_HAS_EXCEPTIONS 0
#ifdef BLOCKATTN_ERROR_HANDLER
#define BLOCKATTN_JOIN(prefix, name) prefix##name
#define BLOCKATTN_EXPAND_AND_JOIN(prefix, name) BLOCKATTN_JOIN(prefix, name)
#define BLOCKATTN_ABI BLOCKATTN_EXPAND_AND_JOIN(abi_0_calls_, BLOCKATTN_ERROR_HANDLER)
#else
#define BLOCKATTN_ABI abi_0_terminates
#endif
#endif

// Kernels are named by their xsimd arch, which does not tell whether the machine multiplies bf16.
#ifdef __AVX512BF16__
#define BLOCKATTN_CPU_ABI multiplies_bf16
#else
#define BLOCKATTN_CPU_ABI widens_bf16
#endif
