// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_key_cta.cuh>
#include <blockattn/cuda/backward_query_cta.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Which key tile and kv head cta `number` takes: in the order of the plan of the group's first
/// head, most tiles first.
struct key_work {
  int kv_head;
  int key_tile;

  __device__ __forceinline__ key_work(const backward_parameters& p, int number)
      : kv_head(number % p.kv_heads) {
    const int plan = p.plan_of_head[kv_head * p.group];
    key_tile = p.lists[plan * list_kinds + key_lists].order[number / p.kv_heads];
  }
};

/// d_q. Grid: query tiles x query heads, those with most tiles first.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(Tuning::warps * 32, Tuning::ctas_per_processor)
    backward_query_kernel(const __grid_constant__ backward_parameters p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int head = static_cast<int>(blockIdx.x) % p.query_heads;
  const int rank = static_cast<int>(blockIdx.x) / p.query_heads;
  const plan_lists& lists = p.lists[p.plan_of_head[head] * list_kinds + query_lists];
  backward_query_cta<Format, Tuning>(p, shared).run(lists, lists.order[rank], head);
}

/// d_k and d_v. Grid: key tiles x kv heads. In one launch with backward_query_kernel, each cta
/// going one way or the other, both were 7 % slower.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(Tuning::warps * 32, Tuning::ctas_per_processor)
    backward_key_kernel(const __grid_constant__ backward_parameters p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  backward_key_cta<Format, Tuning> cta(p, shared);
  {
    const key_work work(p, static_cast<int>(blockIdx.x));
    cta.add(work.key_tile, work.kv_head);
  }
  // Looked up again: kept over the loops, it would cost registers that the products need.
  const key_work work(p, static_cast<int>(blockIdx.x));
  cta.write(work.key_tile, work.kv_head);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
