// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/config.cuh>
#include <blockattn/plan/tile_plan.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// How the forward kernel is cut for head dims up to `columns`; smaller ones are padded with zeros.
/// A warp takes queries / warps rows: with 32, every fragment of keys and values that it reads from
/// shared memory serves two products, without which shared memory, not the tensor cores, is the
/// limit.
template <int Columns>
struct forward_tuning;

template <>
struct forward_tuning<64> {
  static constexpr int columns = 64;
  static constexpr int queries = 128;
  static constexpr int keys = 64;
  static constexpr int warps = 4;
  static constexpr int stages = 2;          ///< tiles of keys and values in shared memory
  static constexpr int ctas_per_processor = 2;
};

template <>
struct forward_tuning<128> {
  static constexpr int columns = 128;
  static constexpr int queries = 128;
  static constexpr int keys = 64;
  static constexpr int warps = 4;
  static constexpr int stages = 2;
  static constexpr int ctas_per_processor = 2;
};

/// 96 KiB of shared memory, which is what compute capability 8.6 has.
template <>
struct forward_tuning<256> {
  static constexpr int columns = 256;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int warps = 4;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 1;
};

/// Calls f(forward_tuning<columns>{}) for the smallest columns that hold both dims, at most 256.
template <class F>
constexpr auto with_forward_tuning(index_t head_dim, index_t value_dim, const F& f) {
  const index_t dim = std::max(head_dim, value_dim);
  if (dim <= 64) return f(forward_tuning<64>{});
  if (dim <= 128) return f(forward_tuning<128>{});
  return f(forward_tuning<256>{});
}

}  // namespace detail

/// The tile shape of plans for `cuda::forward` with these head dims (multiples of 8 up to 256).
constexpr tile_shape tile_shape_for(index_t head_dim, index_t value_dim) noexcept {
  return detail::with_forward_tuning(head_dim, value_dim, [](auto tuning) {
    return tile_shape{decltype(tuning)::queries, decltype(tuning)::keys};
  });
}

/// The same when keys and values have one head_dim.
constexpr tile_shape tile_shape_for(index_t head_dim) noexcept {
  return tile_shape_for(head_dim, head_dim);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda
