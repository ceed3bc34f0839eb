// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/forward_kernel.cuh>
#include <blockattn/cuda/part_merge.cuh>
#include <blockattn/cuda/runtime.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Joins the partial results of split query tiles, in order, and ends their rows. Grid: (splits of
/// any plan, query heads, queries of a tile); one cta for each row.
template <class Tuning>
__global__ void __launch_bounds__(merge_warps * 32)
    merge_parts_kernel(const __grid_constant__ forward_parameters p) {
  wait_for_launcher();
  const int head = static_cast<int>(blockIdx.y);
  const plan_lists& lists = p.lists[p.plan_of_head[head] * list_kinds + forward_lists];
  if (static_cast<int>(blockIdx.x) >= lists.split_count) return;
  const split_tile split = lists.splits[blockIdx.x];
  const int row = static_cast<int>(blockIdx.z);
  const std::int64_t query = static_cast<std::int64_t>(split.outer_tile) * Tuning::queries + row;
  if (query >= p.query_tokens) return;
  const std::int64_t first =
      (static_cast<std::int64_t>(head) * p.parts + split.first_part) * Tuning::queries + row;
  const row_parts parts{p.part_rows + first, p.part_values + first * Tuning::columns,
                        Tuning::queries};
  const partition_run run{split.parts, {}};
  part_merger<Tuning::columns>().merge(p.out, parts, &run, 1, query, head);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
