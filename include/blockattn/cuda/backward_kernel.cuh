// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_key_cta.cuh>
#include <blockattn/cuda/backward_query_cta.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Which key tile and kv head cta number `number` of those for keys takes: in the order of the plan
/// of the group's first head, most tiles first.
struct key_work {
  int kv_head;
  int key_tile;

  __device__ __forceinline__ key_work(const backward_parameters& p, int number)
      : kv_head(number % p.kv_heads) {
    const int plan = p.plan_of_head[kv_head * p.group];
    key_tile = p.lists[plan * list_kinds + key_lists].order[number / p.kv_heads];
  }
};

/// All gradients but those of sink logits. Grid: query tiles x query heads, which may have very
/// long rows and begin first, then key tiles x kv heads, so that one launch has one tail.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(Tuning::warps * 32, Tuning::ctas_per_processor)
    backward_kernel(const __grid_constant__ backward_parameters p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int number = static_cast<int>(blockIdx.x);
  const int query_ctas = p.padded_queries / Tuning::side * p.query_heads;
  if (number < query_ctas) {
    const int head = number % p.query_heads;
    const plan_lists& lists = p.lists[p.plan_of_head[head] * list_kinds + query_lists];
    backward_query_cta<Format, Tuning>(p, shared).run(lists, lists.order[number / p.query_heads],
                                                      head);
    return;
  }
  backward_key_cta<Format, Tuning> cta(p, shared);
  {
    const key_work work(p, number - query_ctas);
    cta.add(work.key_tile, work.kv_head);
  }
  // Looked up again: kept over the loops, it would cost registers that the products need.
  const key_work work(p, static_cast<int>(blockIdx.x) - query_ctas);
  cta.write(work.key_tile, work.kv_head);
}

template <storage_format Format, class Tuning>
inline constexpr int backward_shared_bytes =
    std::max(backward_query_cta<Format, Tuning>::shared_bytes,
             backward_key_cta<Format, Tuning>::shared_bytes);

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
