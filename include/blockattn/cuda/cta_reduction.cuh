// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/config.cuh>

/// \file
/// Reductions over a cta of `token_threads` threads. All threads take part and get the same bits;
/// the order of additions depends on nothing.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Threads of a cta that works on one row of logits.
inline constexpr int token_threads = 512;

/// Each of N values becomes `combine` of those of all threads; `combine` is commutative.
template <int N, class T, class Combine>
__device__ __forceinline__ void reduce_over_cta(T (&values)[N], const Combine& combine) {
  constexpr int warps = token_threads / 32;
  static_assert((warps & (warps - 1)) == 0 && warps <= 32);
  __shared__ T of_warps[N][warps];
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
      values[i] = combine(values[i], __shfl_xor_sync(0xffffffffU, values[i], apart));
    }
    if (lane == 0) of_warps[i][threadIdx.x / 32] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = of_warps[i][lane % warps];
#pragma unroll
    for (int apart = warps / 2; apart > 0; apart /= 2) {
      values[i] = combine(values[i], __shfl_xor_sync(0xffffffffU, values[i], apart));
    }
  }
  __syncthreads();  // of_warps may be written again
}

template <int N, class T>
__device__ __forceinline__ void sum_over_cta(T (&values)[N]) {
  reduce_over_cta(values, [](T a, T b) { return a + b; });
}

/// NaN counts as nothing.
template <int N>
__device__ __forceinline__ void max_over_cta(float (&values)[N]) {
  reduce_over_cta(values, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
