// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/merge_states.cuh>
#include <blockattn/cuda/state_table.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

template <storage_format P, storage_format O>
struct merge_parameters {
  state_table<merge_state<P>> states;
  result_rows<O> o;
  device_entries<float> lse;  ///< or null
  const float* sink_logits;   ///< (heads) or null
  row_split split;
  int value_dim;
};

/// One row for each row_lane::width lanes. A chunk of sums stays in registers while the states pass
/// by: each value is read once, before the same lane writes the result over it.
template <storage_format P, storage_format O>
__global__ void __launch_bounds__(row_threads)
    merge_kernel(const __grid_constant__ merge_parameters<P, O> p) {
  const row_lane row = p.split.place();
  const merge_state<P>* const states = p.states.states();
  const int count = p.states.count;
  row_shares<merge_state<P>> shares(states, count, row, p.sink_logits);
  for (int begin = 0; begin < p.value_dim; begin += row.width * chunk_size) {
    const int column = begin + row.lane * chunk_size;
    const int values = row.inside ? min(chunk_size, p.value_dim - column) : 0;
    float sums[chunk_size] = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#pragma unroll 2  // what ptxas chooses spills there; on older devices 2 does
#endif
    for (int s = 0; s < count; ++s) {
      const float share = shares.share(s);
      if (share != 0 && values > 0) {  // true for NaN; o of weight 0 may hold anything
        const auto& o = states[s].o;
        float chunk[chunk_size];
        load_chunk<P>(chunk, o.row(row.token, row.head) + column, values, o.vectors);
#pragma unroll
        for (int i = 0; i < chunk_size; ++i) sums[i] = fmaf(share, chunk[i], sums[i]);
      }
    }
    if (values > 0) {
      store_chunk<O>(p.o.row(row.token, row.head) + column, sums, values, p.o.vectors);
    }
  }
  if (p.lse.data != nullptr && row.inside && row.lane == 0) {
    p.lse.at(row.token, row.head) = shares.lse();
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
