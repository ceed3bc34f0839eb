// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <blockattn/cuda/cta_reduction.cuh>
#include <blockattn/distill/token_weights.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

struct token_weights_parameters {
  const float* scores;          ///< null for uniform weights
  const std::uint8_t* ignored;  ///< null: all count
  float* weights;               ///< may be the scores
  index_t tokens;
  token_weight_options options;

  __device__ __forceinline__ bool counts(index_t token) const {
    return ignored == nullptr || ignored[token] == 0;
  }
  /// Bits that order scores as their values do.
  __device__ __forceinline__ std::uint32_t key(index_t token) const {
    return __float_as_uint(fabsf(scores[token]));  // -0 is 0
  }
};

/// Calls visit(token) for this thread's share of the tokens.
template <class Visit>
__device__ __forceinline__ void for_each_token(index_t tokens, const Visit& visit) {
  for (index_t token = threadIdx.x; token < tokens; token += token_threads) visit(token);
}

/// Which tokens have the `kept` largest scores: those above a key, and of those that equal it the
/// first `equals`.
struct key_threshold {
  std::uint32_t key;
  index_t equals;
};

/// Finds the key byte by byte, from the highest, by counting tokens for each value of the byte.
__device__ __forceinline__ key_threshold find_threshold(const token_weights_parameters& p,
                                                        index_t kept) {
  __shared__ unsigned counts[256];
  __shared__ key_threshold found;
  key_threshold threshold{0, kept};
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += token_threads) counts[i] = 0;
    __syncthreads();
    const std::uint32_t above = shift == 24 ? 0 : 0xffffffffU << (shift + 8);
    for_each_token(p.tokens, [&](index_t token) {
      if (p.counts(token) && (p.key(token) & above) == threshold.key)
        atomicAdd(&counts[p.key(token) >> shift & 0xff], 1U);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      index_t left = threshold.equals;
      std::uint32_t byte = 255;
      for (; byte > 0 && left > counts[byte]; --byte) left -= counts[byte];
      found = {threshold.key | byte << shift, left};
    }
    __syncthreads();
    threshold = found;
  }
  return threshold;
}

/// Weight 1 for the tokens at or above a threshold, 0 for the others.
__device__ __forceinline__ void keep_largest(const token_weights_parameters& p,
                                             const key_threshold& threshold) {
  constexpr int warps = token_threads / 32;
  __shared__ int of_warps[warps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  index_t equals_before = 0;  // among the tokens of earlier rounds
  for (index_t begin = 0; begin < p.tokens; begin += token_threads) {
    const index_t token = begin + threadIdx.x;
    const bool counts = token < p.tokens && p.counts(token);
    const std::uint32_t key = counts ? p.key(token) : 0;
    const bool is_equal = counts && key == threshold.key;
    const unsigned equals = __ballot_sync(0xffffffffU, is_equal);
    if (threadIdx.x % 32 == 0) of_warps[warp] = __popc(equals);
    __syncthreads();
    index_t before = equals_before + __popc(equals & ((1U << threadIdx.x % 32) - 1));
    for (int w = 0; w < warps; ++w) {
      if (w < warp) before += of_warps[w];
      equals_before += of_warps[w];
    }
    if (token < p.tokens) {
      const bool kept = counts && (key > threshold.key || (is_equal && before < threshold.equals));
      p.weights[token] = kept ? 1 : 0;
    }
    __syncthreads();  // of_warps may be written again
  }
}

/// What blockattn::token_weights computes, with the same roundings; sums are fp64 in an order that
/// depends on the number of tokens alone. One cta.
template <int Threads = token_threads>
__global__ void __launch_bounds__(Threads)
    token_weights_kernel(const __grid_constant__ token_weights_parameters p) {
  static_assert(Threads == token_threads);
  double counted[1] = {0};
  for_each_token(p.tokens, [&](index_t token) { counted[0] += p.counts(token) ? 1 : 0; });
  sum_over_cta(counted);

  // r_t, in place of the weights.
  if (p.options.weighting == token_weighting::top_fraction) {
    const double kept = fmin(counted[0], ceil(p.options.fraction * counted[0]));
    keep_largest(p, find_threshold(p, static_cast<index_t>(kept)));
  } else {
    for_each_token(p.tokens, [&](index_t token) {
      const bool uniform = p.options.weighting == token_weighting::uniform;
      p.weights[token] = !p.counts(token) ? 0 : uniform ? 1 : p.scores[token];
    });
  }

  // A thread has written the weights that it reads.
  const auto mean = [&] {
    double sum[1] = {0};
    for_each_token(p.tokens, [&](index_t token) { sum[0] += p.weights[token]; });
    sum_over_cta(sum);
    return sum[0] / fmax(counted[0], 1.0);
  };
  const double mean_score = mean();
  for_each_token(p.tokens, [&](index_t token) {
    if (!p.counts(token)) return;
    const double relative = mean_score > 0 ? p.weights[token] / mean_score : 1;
    p.weights[token] = static_cast<float>(fmin(fmax(relative, p.options.floor), p.options.cap));
  });
  const double mean_weight = mean();
  if (!(mean_weight > 0)) return;
  for_each_token(p.tokens, [&](index_t token) {
    p.weights[token] = static_cast<float>(p.weights[token] / mean_weight);
  });
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
