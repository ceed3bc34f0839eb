// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_backward_arguments.hpp>
#include <blockattn/cuda/merge_states.cuh>
#include <blockattn/cuda/state_table.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A partial_state and where its gradients go, null for those that are not wanted.
template <storage_format P, storage_format D>
struct merge_gradient_state : merge_state<P> {
  result_rows<D> d_o;
  device_entries<float> d_lse;
  device_entries<float> d_row_log_weights;
};

template <class P, class D>
merge_gradient_state<format_of<P>, format_of<D>> as_merge_gradient_state(
    const partial_state<P, float>& state, const partial_state_gradient<D, float>& gradient) {
  return {as_merge_state(state), as_device_rows(gradient.d_o), as_device_entries(gradient.d_lse),
          as_device_entries(gradient.d_row_log_weights)};
}

template <storage_format P, storage_format O, storage_format D>
struct merge_backward_parameters {
  state_table<merge_gradient_state<P, D>> states;
  input_rows<O> d_o;
  device_entries<const float> d_lse;  ///< or null
  const float* sink_logits;           ///< (heads) or null
  float* sink_parts;                  ///< (heads, tokens) or null: each row's share of d_sink
  row_split split;
  index_t tokens;
  int value_dim;
};

/// The sum over the lanes of a row: the same bits in all of them.
__device__ __forceinline__ float sum_over_row(float value, int width) {
  for (int apart = width / 2; apart > 0; apart /= 2) {
    value += __shfl_xor_sync(whole_warp, value, apart);
  }
  return value;
}

/// The pass of cpu::merge_backward over one row for each row_lane::width lanes. d_o . o_s of a
/// state, which waits for delta, stays meanwhile in the place of the gradient that it is for.
template <storage_format P, storage_format O, storage_format D>
__global__ void __launch_bounds__(row_threads)
    merge_backward_kernel(const __grid_constant__ merge_backward_parameters<P, O, D> p) {
  using state = merge_gradient_state<P, D>;
  const row_lane row = p.split.place();
  const state* const states = p.states.states();
  const int count = p.states.count;
  row_shares<state> shares(states, count, row, p.sink_logits);

  // d_o_s = p_s d_o; delta = d_o . o without o: the weighted sum of d_o . o_s.
  const auto place_of_dot = [&](const state& s) {
    const auto& entries = s.d_lse.data != nullptr ? s.d_lse : s.d_row_log_weights;
    return entries.data != nullptr ? &entries.at(row.token, row.head) : nullptr;
  };
  float delta = 0;
  for (int s = 0; s < count; ++s) {
    const float share = shares.share(s);
    float dot = 0;
    for (int column = row.lane * chunk_size; row.inside && column < p.value_dim;
         column += row.width * chunk_size) {
      const int values = p.value_dim - column;
      float d_o[chunk_size];
      load_chunk<O>(d_o, p.d_o.row(row.token, row.head) + column, values, p.d_o.vectors);
      if (share != 0) {  // o of weight 0 may hold anything
        float o[chunk_size];
        load_chunk<P>(o, states[s].o.row(row.token, row.head) + column, values,
                      states[s].o.vectors);
#pragma unroll
        for (int i = 0; i < chunk_size; ++i) dot = fmaf(d_o[i], o[i], dot);
      }
      const auto& to = states[s].d_o;
      if (to.data == nullptr) continue;
#pragma unroll
      for (int i = 0; i < chunk_size; ++i) d_o[i] *= share;
      store_chunk<D>(to.row(row.token, row.head) + column, d_o, values, to.vectors);
    }
    dot = sum_over_row(dot, row.width);
    delta += share * dot;
    if (row.inside && row.lane == (s & (row.width - 1))) {
      float* const place = place_of_dot(states[s]);
      if (place != nullptr) *place = dot;
    }
  }
  if (!row.inside) return;

  // d_w_s = p_s (d_o . o_s - delta + d_lse), by the lane that has put the product away.
  const float d_lse = p.d_lse.data != nullptr ? p.d_lse.at(row.token, row.head) : 0.0F;
  for (int s = row.lane; s < count; s += row.width) {
    const float* const place = place_of_dot(states[s]);
    if (place == nullptr) continue;
    const float share = shares.share_alone(s);
    const float d_weight = share == 0 ? 0.0F : share * (*place - delta + d_lse);
    if (states[s].d_lse.data != nullptr) {
      states[s].d_lse.at(row.token, row.head) = states[s].log_weight_scale * d_weight;
    }
    if (states[s].d_row_log_weights.data != nullptr) {
      states[s].d_row_log_weights.at(row.token, row.head) = d_weight;
    }
  }
  if (p.sink_parts != nullptr && row.lane == 0) {
    p.sink_parts[row.head * p.tokens + row.token] = shares.sink_share() * (d_lse - delta);
  }
}

/// d_sink = the sum over a head's tokens, in an order that depends on nothing. One cta for each
/// head.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    merge_sink_kernel(const float* sink_parts, index_t tokens, float* d_sink_logits) {
  __shared__ float sums[Threads];
  const int thread = static_cast<int>(threadIdx.x);
  const float* const parts = sink_parts + blockIdx.x * tokens;
  float sum = 0;
  for (index_t token = thread; token < tokens; token += Threads) sum += parts[token];
  sums[thread] = sum;
  for (int half = Threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) d_sink_logits[blockIdx.x] = sums[0];
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
