// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_arguments.hpp>
#include <blockattn/cuda/row_access.cuh>

/// \file
/// The weights of a merge, for one row (the formulas of softmax_state.hpp, on a device). The lanes
/// of a row hold the weighted lse of a state each and add them up in the order of the states, as
/// the CPU does: a state that is absent changes no bit.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A partial_state in device memory.
template <storage_format P>
struct merge_state {
  input_rows<P> o;
  device_entries<const float> lse;
  device_entries<const float> row_log_weights;  ///< or null
  float log_weight_scale;
  float log_weight;

  /// What the state brings to its row in place of lse; -inf when it is absent.
  __device__ __forceinline__ float weighted_lse(std::int64_t token, std::int64_t head) const {
    const float own = lse.at(token, head);
    if (own == -INFINITY) return own;
    const float weighted = log_weight_scale * own + log_weight;
    return row_log_weights.data != nullptr ? weighted + row_log_weights.at(token, head) : weighted;
  }
};

template <class P>
merge_state<format_of<P>> as_merge_state(const partial_state<P, float>& state) {
  return {.o = as_device_rows(state.o),
          .lse = as_device_entries(state.lse),
          .row_log_weights = as_device_entries(state.row_log_weights),
          .log_weight_scale = static_cast<float>(state.log_weight_scale),
          .log_weight = static_cast<float>(state.log_weight)};
}

/// log(exp(a) + exp(b)); -inf is the identity.
__device__ __forceinline__ float merged_lse(float a, float b) {
  if (a == b) return a + 0.6931471805599453F;  // also keeps -inf - -inf out of the next line
  return fmaxf(a, b) + log1pf(expf(-fabsf(a - b)));
}

/// exp(a) / (exp(a) + exp(b)); 0 when a is -inf, whatever b is.
__device__ __forceinline__ float merge_weight(float a, float b) {
  return a == -INFINITY ? 0.0F : 1.0F / (1.0F + expf(b - a));
}

/// The shares p_s of all states in one row. The lanes of a warp call its functions together and
/// with the same states.
template <class State>
class row_shares {
 public:
  /// `sink_logits`: (heads) or null.
  __device__ __forceinline__
  row_shares(const State* states, int count, const row_lane& row, const float* sink_logits)
      : states_(states), count_(count), row_(row) {
    float largest = -INFINITY;
    for (int s = 0; s < count; ++s) {
      const float value = weighted_lse(s);
      if (value > largest || isnan(value)) largest = value;
    }
    const bool any = largest != -INFINITY;
    largest_ = any ? largest : 0.0F;
    float sum = 0;
    for (int s = 0; s < count; ++s) sum += expf(weighted_lse(s) - largest_);
    states_lse_ = any ? largest + logf(sum) : -INFINITY;
    sink_ = sink_logits != nullptr ? sink_logits[row.head] : -INFINITY;
    const float left = sink_ == -INFINITY ? 1.0F : merge_weight(states_lse_, sink_);
    scale_ = any ? 1.0F / sum * left : 0.0F;
  }

  /// p_s, the sink's share taken off: the same for all lanes of the row.
  __device__ __forceinline__ float share(int s) {
    return expf(weighted_lse(s) - largest_) * scale_;
  }
  /// The same for this lane alone, without the help of others.
  __device__ __forceinline__ float share_alone(int s) const {
    return expf(states_[s].weighted_lse(row_.token, row_.head) - largest_) * scale_;
  }
  /// The lse of the merged row, sink included.
  __device__ __forceinline__ float lse() const {
    return sink_ == -INFINITY ? states_lse_ : merged_lse(states_lse_, sink_);
  }
  /// exp(sink - lse()).
  __device__ __forceinline__ float sink_share() const { return merge_weight(sink_, states_lse_); }

 private:
  /// Of state s; read once for `width` states that follow one another.
  __device__ __forceinline__ float weighted_lse(int s) {
    const int lane_of_s = s & (row_.width - 1);
    if (s - lane_of_s != held_) {
      held_ = s - lane_of_s;
      const int own = held_ + row_.lane;
      own_ = row_.inside && own < count_ ? states_[own].weighted_lse(row_.token, row_.head)
                                         : -INFINITY;
    }
    return __shfl_sync(whole_warp, own_, lane_of_s, row_.width);
  }

  const State* states_;
  int count_;
  row_lane row_;
  int held_ = -1;  ///< first of the states that the lanes hold
  float own_ = 0;
  float largest_, scale_, states_lse_, sink_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
