// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/runtime.cuh>
#include <blockattn/cuda/token_weights_kernel.cuh>
#include <limits>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

/// `blockattn::token_weights` on the device, with all its options; scores, ignored and weights are
/// device memory, `weights` may be the scores. Differs from the host's only by the order of its
/// fp64 sums. Only enqueues on `stream`; allocates nothing; one cta: O(tokens), six passes for
/// top_fraction, which selects by the bytes of the scores.
///
/// Throws `error` on lengths that disagree and options out of range. That scores are finite
/// and >= 0 is not checked; NaN and infinity spread to all weights.
inline void token_weights(const token_weight_arguments<float>& arguments,
                          const token_weight_options& options,
                          cudaStream_t stream) {
  constexpr const char* function = "cuda::token_weights";
  blockattn::detail::check_token_weight_shapes(function, arguments, options);
  const auto tokens = static_cast<index_t>(arguments.weights.size());
  blockattn::detail::require(tokens <= std::numeric_limits<std::int32_t>::max(), function, ": ",
                             tokens, " tokens, on a device they are at most ",
                             std::numeric_limits<std::int32_t>::max());
  if (tokens == 0) return;
  detail::token_weights_kernel<><<<1, detail::token_threads, 0, stream>>>(
      {.scores = arguments.scores.data(),
       .ignored = arguments.ignored.empty() ? nullptr : arguments.ignored.data(),
       .weights = arguments.weights.data(),
       .tokens = tokens,
       .options = options});
  detail::require_success(cudaGetLastError(), function, "the launch");
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda
