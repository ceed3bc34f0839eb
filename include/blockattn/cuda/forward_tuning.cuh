// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/storage.hpp>
#include <blockattn/cuda/config.cuh>
#include <blockattn/plan/make_tile_plan.hpp>
#include <cstdint>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// How the forward kernel is cut for head dims up to Columns (smaller ones are padded with zeros)
/// and tiles of Queries rows. A warp takes Queries / warps rows: with 32, every fragment of keys
/// and values that it reads from shared memory serves two products, without which shared memory,
/// not the tensor cores, is the limit; 16 rows waste less where blocks are short. `Stored` is what
/// keys and values are stored as: 16 bits, or float.
template <int Columns, int Queries, class Stored = std::uint16_t>
struct forward_tuning;

/// Measured on an H100, causal 8K: 128 x 128 reaches 322 TFLOP/s, 128 x 64 291.
template <>
struct forward_tuning<64, 128> {
  static constexpr int columns = 64;
  static constexpr int queries = 128;
  static constexpr int keys = 128;
  static constexpr int strip = 128;  ///< keys whose scores a warp holds at a time
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;  ///< that own the same rows, and some value columns each
  static constexpr int stages = 2;        ///< tiles of keys and values in shared memory
  static constexpr int ctas_per_processor = 2;
};

template <>
struct forward_tuning<64, 64> {
  static constexpr int columns = 64;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int strip = 64;
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;
  static constexpr int stages = 2;
  static constexpr int ctas_per_processor = 4;
};

/// Measured on an H100, causal 8K: 371 TFLOP/s; one cta of 256 x 64 and 8 warps reaches 343.
template <>
struct forward_tuning<128, 128> {
  static constexpr int columns = 128;
  static constexpr int queries = 128;
  static constexpr int keys = 64;
  static constexpr int strip = 64;
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;
  static constexpr int stages = 2;
  static constexpr int ctas_per_processor = 2;
};

template <>
struct forward_tuning<128, 64> {
  static constexpr int columns = 128;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int strip = 64;
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;
  static constexpr int stages = 1;  // two, with room for two ctas, are 12 % slower on ragged blocks
  static constexpr int ctas_per_processor = 3;
};

/// 96 KiB of shared memory, which is what compute capability 8.6 has.
template <>
struct forward_tuning<256, 64> {
  static constexpr int columns = 256;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int strip = 64;
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 1;
};

template <>
struct forward_tuning<64, 64, float> {
  static constexpr int columns = 64;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int strip = 32;
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;
  static constexpr int stages = 2;
  static constexpr int ctas_per_processor = 2;
};

/// 96 KiB, as are all that follow.
template <>
struct forward_tuning<128, 64, float> {
  static constexpr int columns = 128;
  static constexpr int queries = 64;
  static constexpr int keys = 64;
  static constexpr int strip = 16;
  static constexpr int warps = 4;
  static constexpr int column_warps = 1;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 2;
};

template <>
struct forward_tuning<256, 32, float> {
  static constexpr int columns = 256;
  static constexpr int queries = 32;
  static constexpr int keys = 32;
  static constexpr int strip = 16;
  static constexpr int warps = 4;
  static constexpr int column_warps = 2;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 2;
};

/// Columns that the larger of two head dims is padded to.
constexpr index_t padded_columns(index_t head_dim, index_t value_dim) {
  const index_t dim = std::max(head_dim, value_dim);
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

/// Calls f with the tuning for two head dims (at most 256) and, in 16 bits, tiles of `queries`
/// rows, 64 or 128.
template <class Stored, class F>
constexpr auto with_forward_tuning(index_t head_dim,
                                   index_t value_dim,
                                   index_t queries,
                                   const F& f) {
  const index_t columns = padded_columns(head_dim, value_dim);
  if constexpr (std::is_same_v<Stored, float>) {
    if (columns == 64) return f(forward_tuning<64, 64, float>{});
    if (columns == 128) return f(forward_tuning<128, 64, float>{});
    return f(forward_tuning<256, 32, float>{});
  } else {
    if (columns == 64) {
      return queries == 64 ? f(forward_tuning<64, 64>{}) : f(forward_tuning<64, 128>{});
    }
    if (columns == 128) {
      return queries == 64 ? f(forward_tuning<128, 64>{}) : f(forward_tuning<128, 128>{});
    }
    return f(forward_tuning<256, 64>{});
  }
}

constexpr tile_shape forward_tile_shape(index_t head_dim,
                                        index_t value_dim,
                                        storage_format format,
                                        index_t queries) {
  const auto shape = [](auto tuning) {
    return tile_shape{decltype(tuning)::queries, decltype(tuning)::keys};
  };
  return format == storage_format::fp32
             ? with_forward_tuning<float>(head_dim, value_dim, queries, shape)
             : with_forward_tuning<std::uint16_t>(head_dim, value_dim, queries, shape);
}

}  // namespace detail

/// The tile shape of plans for `cuda::forward` with these head dims (multiples of 8 up to 256) and
/// the storage format of keys and values: the one with which full tiles go fastest.
constexpr tile_shape tile_shape_for(index_t head_dim,
                                    index_t value_dim,
                                    storage_format format = storage_format::bf16) noexcept {
  return detail::forward_tile_shape(head_dim, value_dim, format, 128);
}

/// The same when keys and values have one head_dim.
constexpr tile_shape tile_shape_for(index_t head_dim) noexcept {
  return tile_shape_for(head_dim, head_dim);
}

/// The other tile shape that `cuda::forward` takes, 64 x 64: less of a tile is wasted where blocks
/// are shorter than tiles. In fp32 there is one shape only.
constexpr tile_shape fine_tile_shape_for(index_t head_dim,
                                         index_t value_dim,
                                         storage_format format = storage_format::bf16) noexcept {
  return detail::forward_tile_shape(head_dim, value_dim, format, 64);
}

/// A plan of `mask` in the one of the two shapes that is expected to be faster: fine tiles go at
/// 0.79 of the rate of the others on an H100 (causal 8K, head dim 128), so they pay when the others
/// cover 1.27 times as many pairs. `format` is that of keys and values; in fp32 there is one shape
/// only. Throws what make_tile_plan throws; takes twice its time.
inline tile_plan make_tile_plan_for(const attention_mask& mask,
                                    index_t head_dim,
                                    index_t value_dim,
                                    const plan_options& options = {},
                                    storage_format format = storage_format::bf16) {
  constexpr double rate_of_fine_tiles = 0.79;
  const tile_shape coarse_shape = tile_shape_for(head_dim, value_dim, format);
  const tile_shape fine_shape = fine_tile_shape_for(head_dim, value_dim, format);
  tile_plan coarse = make_tile_plan(mask, coarse_shape, options);
  if (fine_shape == coarse_shape) return coarse;
  tile_plan fine = make_tile_plan(mask, fine_shape, options);
  const auto area = [](const tile_plan& plan) {
    return static_cast<double>(plan.statistics().tile_area);
  };
  return area(fine) < rate_of_fine_tiles * area(coarse) ? fine : coarse;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda
