// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <blockattn/cuda/config.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// How attend_blocks is cut for head dims up to Columns and tiles of Rows rows (queries x heads of
/// a kv head). Few rows leave nothing for tensor cores to do: what counts is how many bytes of keys
/// are under way, so the warps share the keys of a tile instead of its rows.
template <int Columns, int Rows>
struct attend_tuning {
  static constexpr int columns = Columns;
  static constexpr int rows = Rows;
  static constexpr int keys = Columns == 64 && Rows == 16 ? 128 : Columns <= 128 ? 64 : 32;
  static constexpr int key_warps = Rows > 16 ? 1 : Columns == 256 ? 2 : 4;
  static constexpr int row_warps = Rows > 16 ? 4 : 1;
  static constexpr int threads = key_warps * row_warps * 32;
  static constexpr int stages = 2;
  /// Of which so many are filled before the first tile is waited for: all where bytes are what
  /// counts; the others have no registers for it.
  static constexpr int tiles_ahead = Rows == 16 ? stages : stages - 1;
  /// What the shared memory of an H100 holds.
  static constexpr int ctas_per_processor = Rows == 16 && Columns <= 128 ? 3 : 2;
  /// About how many items a call is cut into: what an H100 runs at a time, in one wave.
  static constexpr int items = 132 * ctas_per_processor;
};

/// Few rows, and many: with 64 in a tile of their own, 8 queries x 4 heads were not faster than in
/// one of 128, memory being what they wait for.
inline constexpr int attend_row_classes = 2;

/// The class of sequences with so many rows.
constexpr int attend_row_class(index_t rows) { return rows <= 16 ? 0 : 1; }

/// Head dims are padded to 64, 128 or 256 columns.
constexpr index_t attend_columns(index_t head_dim, index_t value_dim) {
  const index_t dim = head_dim < value_dim ? value_dim : head_dim;
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

/// Calls f with the tuning of a class.
template <class F>
constexpr auto with_attend_tuning(index_t columns, int row_class, const F& f) {
  if (columns == 64) {
    return row_class == 0 ? f(attend_tuning<64, 16>{}) : f(attend_tuning<64, 128>{});
  }
  if (columns == 128) {
    return row_class == 0 ? f(attend_tuning<128, 16>{}) : f(attend_tuning<128, 128>{});
  }
  return row_class == 0 ? f(attend_tuning<256, 16>{}) : f(attend_tuning<256, 64>{});
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
