// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/device_layout.cuh>
#include <blockattn/cuda/row_access.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Which row of the other axis a row of the result is made of.
enum class row_origin {
  token,      ///< the result is a source row: the token that it became
  sink,       ///< the result is a sink row, counted in axis order: its token
  any_token,  ///< the result is a token: its source row or its sink row
};

/// Rows that are copied as they are, in units of any Word that divides them and their addresses.
struct copy_rows_parameters {
  layout_map map;
  row_origin origin;
  const void* from;
  const void* sinks;  ///< for any_token
  void* to;
  index_t words;          ///< of a row
  int sinks_are_one_set;  ///< 1: row r of every set is row r of `sinks`
  row_split split;
};

template <class Word>
__global__ void __launch_bounds__(row_threads)
    copy_rows_kernel(const __grid_constant__ copy_rows_parameters p) {
  const row_lane row = p.split.place();
  if (!row.inside) return;
  const auto* from = static_cast<const Word*>(p.from);
  index_t from_row = 0;
  if (p.origin == row_origin::any_token) {
    const layout_map::origin origin = p.map.origin_of(row.token);
    from_row = origin.row;
    if (origin.is_sink) {
      from = static_cast<const Word*>(p.sinks);
      if (p.sinks_are_one_set) from_row %= p.map.tokens_per_set;
    }
  } else {
    from_row = p.map.token_of(row.token);
  }
  from += from_row * p.words;
  Word* const to = static_cast<Word*>(p.to) + row.token * p.words;
  for (index_t i = row.lane; i < p.words; i += row.width) to[i] = from[i];
}

/// Whether gradients are `=` or `+=`.
enum class gradient_write { assign, accumulate };

/// Rows of gradients, of columns values each.
template <storage_format In, storage_format Out>
struct gradient_rows_parameters {
  layout_map map;
  row_origin origin;
  const stored_bits<In>* from;
  stored_bits<Out>* to;
  index_t columns;
  index_t sets;  ///< of sinks, where they are summed
  gradient_write write;
  int vectors;  ///< 1 when all rows begin at multiples of 16 bytes
  row_split split;
};

/// Writes or adds the first `count` of eight values.
template <storage_format Out>
__device__ __forceinline__ void put_chunk(stored_bits<Out>* to,
                                          float (&values)[chunk_size],
                                          int count,
                                          int vectors,
                                          gradient_write write) {
  if (write == gradient_write::accumulate) {
    float before[chunk_size];
    load_chunk<Out>(before, to, count, vectors);
#pragma unroll
    for (int i = 0; i < chunk_size; ++i) values[i] += before[i];
  }
  store_chunk<Out>(to, values, count, vectors);
}

/// to[row] = from[its row], 0 for the sinks among any_token.
template <storage_format In, storage_format Out>
__global__ void __launch_bounds__(row_threads)
    gradient_rows_kernel(const __grid_constant__ gradient_rows_parameters<In, Out> p) {
  const row_lane row = p.split.place();
  if (!row.inside) return;
  index_t from_row = -1;
  if (p.origin == row_origin::token) {
    from_row = p.map.token_of(row.token);
  } else if (p.origin == row_origin::sink) {
    from_row = p.map.token_of_sink(row.token);
  } else {
    const layout_map::origin origin = p.map.origin_of(row.token);
    if (!origin.is_sink) from_row = origin.row;
  }
  const int columns = static_cast<int>(p.columns);
  for (int column = row.lane * chunk_size; column < columns; column += row.width * chunk_size) {
    float values[chunk_size] = {};
    if (from_row >= 0) {
      load_chunk<In>(values, p.from + from_row * p.columns + column, columns - column, p.vectors);
    }
    put_chunk<Out>(p.to + row.token * p.columns + column, values, columns - column, p.vectors,
                   p.write);
  }
}

inline constexpr int sink_sum_warps = 16;

/// to[r] = the sum over all sets of from[sink r of the set]. A warp adds every sixteenth set; the
/// warps are added in order. Grid: tokens_per_set x groups of 256 columns.
template <storage_format In, storage_format Out>
__global__ void __launch_bounds__(sink_sum_warps * 32)
    sum_sinks_kernel(const __grid_constant__ gradient_rows_parameters<In, Out> p) {
  __shared__ float sums[sink_sum_warps][chunk_size][32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const auto groups = static_cast<unsigned>((p.columns - 1) / (32 * chunk_size) + 1);
  const index_t row = blockIdx.x / groups;
  const index_t column = (static_cast<index_t>(blockIdx.x % groups) * 32 + lane) * chunk_size;
  const int count = static_cast<int>(min(index_t{chunk_size}, p.columns - column));
  float sum[chunk_size] = {};
  for (index_t set = warp; set < p.sets; set += sink_sum_warps) {
    float values[chunk_size];
    load_chunk<In>(values, p.from + (p.map.sink_sets[set] + row) * p.columns + column, count,
                   p.vectors);
#pragma unroll
    for (int i = 0; i < chunk_size; ++i) sum[i] += values[i];
  }
#pragma unroll
  for (int i = 0; i < chunk_size; ++i) sums[warp][i][lane] = sum[i];
  __syncthreads();
  if (warp != 0 || count <= 0) return;
#pragma unroll
  for (int i = 0; i < chunk_size; ++i) {
    for (int other = 1; other < sink_sum_warps; ++other) sum[i] += sums[other][i][lane];
  }
  put_chunk<Out>(p.to + row * p.columns + column, sum, count, p.vectors, p.write);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
