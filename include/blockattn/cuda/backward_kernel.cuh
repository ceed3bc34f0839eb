// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_key_cta.cuh>
#include <blockattn/cuda/backward_query_cta.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Which part of which key tile and kv head the current cta takes: a few heads after the others, so
/// that what they read and add to stays in cache (four at a time against all: 4 % of causal 32K with
/// 8 kv heads, 8 % with 64 of head dim 64; eight: 1 %); of these in the order of the plan of the
/// group's first head.
template <class Tuning>
struct key_work {
  static constexpr int parts = Tuning::side / Tuning::rows;
  static constexpr int heads_together = 4;
  int kv_head;
  int part;
  int key_tile;

  __device__ __forceinline__ explicit key_work(const backward_parameters& p) {
    const int cta = static_cast<int>(blockIdx.x);
    const int ctas_of_head = static_cast<int>(gridDim.x) / p.kv_heads;
    const int first_head = cta / (heads_together * ctas_of_head) * heads_together;
    const int heads = min(heads_together, p.kv_heads - first_head);
    const int in_heads = cta - first_head * ctas_of_head;
    kv_head = first_head + in_heads % heads;
    const int rank = in_heads / heads;
    const int plan = p.group > 0 ? p.plan_of_head[kv_head * p.group] : 0;
    part = rank % parts;
    key_tile = p.lists[plan * list_kinds + key_lists].order[rank / parts];
  }
};

/// d_q. Grid: query tiles x parts of a tile x query heads, those with most tiles first.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(backward_warp<Tuning>::threads, Tuning::ctas_per_processor)
    backward_query_kernel(const __grid_constant__ backward_parameters p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int head = static_cast<int>(blockIdx.x) % p.query_heads;
  const int rank = static_cast<int>(blockIdx.x) / p.query_heads;
  const plan_lists& lists = p.lists[p.plan_of_head[head] * list_kinds + query_lists];
  constexpr int parts = Tuning::side / Tuning::rows;
  backward_query_cta<Format, Tuning>(p, shared).run(lists, lists.order[rank / parts], rank % parts,
                                                    head);
}

/// d_k and d_v, and what QueryGradient adds. Grid: key tiles x parts of a tile x kv heads. In one
/// launch with backward_query_kernel, each cta going one way or the other, both were 7 % slower.
template <storage_format Format, class Tuning, class QueryGradient>
__global__ void __launch_bounds__(backward_warp<Tuning>::threads, Tuning::ctas_per_processor)
    backward_key_kernel(const __grid_constant__ backward_parameters p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  backward_key_cta<Format, Tuning, QueryGradient> cta(p, shared);
  {
    const key_work<Tuning> work(p);
    cta.add(work.key_tile, work.part, work.kv_head);
  }
  // Looked up again: kept over the loops, it would cost registers that the products need.
  const key_work<Tuning> work(p);
  cta.write(work.key_tile, work.part, work.kv_head);
}

/// Rounds the sums of d_q. Grid: query tiles, query heads.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(query_gradient_sums<Format, Tuning>::write_threads)
    round_query_gradient_kernel(const __grid_constant__ backward_parameters p) {
  query_gradient_sums<Format, Tuning>::write(p, static_cast<int>(blockIdx.x),
                                             static_cast<int>(blockIdx.y));
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
