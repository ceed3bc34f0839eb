// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/forward_kernel.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Joins the partial results of split query tiles, in order, and ends their rows. Grid: (splits of
/// any plan, query heads, queries of a tile / warps); one warp for each row.
template <class Tuning>
__global__ void __launch_bounds__(Tuning::warps * 32)
    merge_parts_kernel(const __grid_constant__ forward_parameters p) {
  const int head = static_cast<int>(blockIdx.y);
  const plan_lists& lists = p.lists[p.plan_of_head[head] * list_kinds + forward_lists];
  if (static_cast<int>(blockIdx.x) >= lists.split_count) return;
  const split_tile split = lists.splits[blockIdx.x];
  const int row = static_cast<int>(blockIdx.z * Tuning::warps + threadIdx.x / 32);
  const std::int64_t query = static_cast<std::int64_t>(split.outer_tile) * Tuning::queries + row;
  if (query >= p.query_tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t first =
      (static_cast<std::int64_t>(head) * p.parts + split.first_part) * Tuning::queries + row;

  row_statistics all{no_maximum, 0};
  for (int part = 0; part < split.parts; ++part) {
    all.max_log2 = fmaxf(all.max_log2, p.part_rows[first + part * Tuning::queries].max_log2);
  }
  constexpr int values_per_lane = Tuning::columns / 32;
  float values[values_per_lane] = {};
  for (int part = 0; part < split.parts; ++part) {
    const std::int64_t at = first + part * Tuning::queries;
    const row_statistics statistics = p.part_rows[at];
    const float weight = exp2_approximate(statistics.max_log2 - all.max_log2);
    all.sum += weight * statistics.sum;
#pragma unroll
    for (int i = 0; i < values_per_lane; ++i) {
      values[i] += weight * p.part_values[at * Tuning::columns + i * 32 + lane];
    }
  }
  const float factor = finish_row(p.out, all, query, head, lane == 0);
#pragma unroll
  for (int i = 0; i < values_per_lane; ++i) {
    const int column = i * 32 + lane;
    if (column >= p.out.value_dim) continue;
    p.out.store(p.out.element(query, head) + column, values[i] * factor);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
