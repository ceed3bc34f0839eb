// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_backward_arguments.hpp>
#include <blockattn/cpu/convert.hpp>
#include <blockattn/cpu/in_place.hpp>
#include <blockattn/cpu/run_job.hpp>
#include <blockattn/softmax/softmax_state.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// A checked merge_backward call, cut into tasks; run it like a forward_job. Phase 0 goes over the
/// rows as merge does; phase 1 adds up the sinks' gradients, which phase 0 left for each task, in
/// task order.
template <class P, class O, class D, class Arch>
class merge_backward_job {
 public:
  using arguments_type = merge_backward_arguments<P, O, D>;
  using C = typename arguments_type::accumulator_type;

  explicit merge_backward_job(const arguments_type& arguments) noexcept : arguments_(arguments) {
    detail::workspace_layout layout;
    const auto states = static_cast<index_t>(arguments.states.size());
    weights_offset_ = layout.take<C>(states);
    dots_offset_ = layout.take<C>(states);
    d_o_offset_ = layout.take<C>(arguments.d_o.head_dim);
    worker_size_ = layout.size();
    if (!arguments.d_sink_logits.empty()) {
      detail::workspace_layout shared;
      shared.take<C>(detail::saturating_multiply(row_tasks(), arguments.d_o.heads));
      shared_size_ = shared.size();
    }
  }

  index_t phases() const noexcept { return arguments_.d_sink_logits.empty() ? 1 : 2; }
  index_t tasks(index_t phase) const noexcept { return phase == 0 ? row_tasks() : 1; }
  index_t workspace_size(index_t concurrency) const noexcept {
    return detail::saturating_add(shared_size_,
                                  detail::saturating_multiply(concurrency, worker_size_));
  }
  void run(index_t phase,
           index_t task,
           index_t worker,
           std::span<std::byte> workspace) const noexcept {
    C* const sink_parts = detail::piece<C>(workspace, 0);  // (row_tasks, heads)
    if (phase == 1) return add_sink_parts(sink_parts);
    const auto scratch =
        workspace.subspan(static_cast<std::size_t>(shared_size_ + worker * worker_size_));
    const index_t heads = arguments_.d_o.heads;
    const bool with_sinks = !arguments_.d_sink_logits.empty();
    if (with_sinks) std::fill_n(sink_parts + task * heads, heads, C{0});
    const index_t end = std::min(arguments_.d_o.tokens, (task + 1) * task_tokens);
    for (index_t token = task * task_tokens; token < end; ++token) {
      for (index_t head = 0; head < heads; ++head) {
        const C d_sink = differentiate_row(token, head, scratch);
        if (with_sinks) sink_parts[task * heads + head] += d_sink;
      }
    }
  }
  /// Calls visit(name, view) for every tensor of the call.
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    detail::visit_memory(arguments_, visit);
  }

 private:
  static constexpr index_t task_tokens = 16;

  index_t row_tasks() const noexcept { return ceil_divide(arguments_.d_o.tokens, task_tokens); }

  /// Writes the gradients of one row of every state; returns the row's share of the sink's.
  C differentiate_row(index_t token, index_t head, std::span<std::byte> scratch) const noexcept {
    constexpr C nothing = -std::numeric_limits<C>::infinity();
    const auto states = arguments_.states;
    const index_t value_dim = arguments_.d_o.head_dim;
    const std::span weights(detail::piece<C>(scratch, weights_offset_), states.size());
    C* const dots = detail::piece<C>(scratch, dots_offset_);
    C* const d_o = detail::piece<C>(scratch, d_o_offset_);
    detail::load_row<Arch>(arguments_.d_o.row(token, head), value_dim, 1, d_o);

    // Forward's weights p_s, sink included.
    for (std::size_t s = 0; s < states.size(); ++s) {
      const C lse = states[s].lse.at(token, head);
      weights[s] = weighted_lse<Arch>(lse, static_cast<C>(states[s].log_weight_scale),
                                      static_cast<C>(states[s].log_weight));
      const auto& row_log_weights = states[s].row_log_weights;
      if (row_log_weights && lse != nothing) weights[s] += row_log_weights.at(token, head);
    }
    const C lse = merge_weights<Arch>(std::span<const C>(weights), weights);
    const C sink = arguments_.sink_logits.empty()
                       ? nothing
                       : arguments_.sink_logits[static_cast<std::size_t>(head)];
    const C left = apply_sink_logit<Arch>(lse, sink).output_scale;

    // d_o . o without o: the weighted sum of d_o . o_s.
    C delta = 0;
    for (std::size_t s = 0; s < states.size(); ++s) {
      weights[s] *= left;
      if (weights[s] == 0) continue;
      detail::dot_rows<Arch, 1, 1>(d_o, 0, states[s].o.row(token, head), 0, value_dim, dots + s, 1);
      delta += weights[s] * dots[s];
    }
    const C d_lse = arguments_.d_lse ? arguments_.d_lse.at(token, head) : C{0};
    for (std::size_t s = 0; s < states.size(); ++s) {
      const auto& gradient = arguments_.gradients[s];
      const C d_weight = weights[s] == 0 ? C{0} : weights[s] * (dots[s] - delta + d_lse);
      if (gradient.d_o.data) {
        detail::store_row<Arch>(d_o, value_dim, weights[s], gradient.d_o.row(token, head));
      }
      if (gradient.d_lse) {
        gradient.d_lse.at(token, head) = static_cast<C>(states[s].log_weight_scale) * d_weight;
      }
      if (gradient.d_row_log_weights) gradient.d_row_log_weights.at(token, head) = d_weight;
    }
    return merge_weight<Arch>(sink, lse) * (d_lse - delta);
  }

  void add_sink_parts(const C* sink_parts) const noexcept {
    const index_t heads = arguments_.d_o.heads;
    for (index_t head = 0; head < heads; ++head) {
      C sum = 0;
      for (index_t task = 0; task < row_tasks(); ++task) sum += sink_parts[task * heads + head];
      arguments_.d_sink_logits[static_cast<std::size_t>(head)] = sum;
    }
  }

  arguments_type arguments_;
  index_t weights_offset_ = 0;
  index_t dots_offset_ = 0;
  index_t d_o_offset_ = 0;
  index_t worker_size_ = 0;
  index_t shared_size_ = 0;
};

/// Checks a merge_backward call and cuts it into tasks. Throws what `merge_backward` throws.
/// O(states^2).
template <class P = float, class O = P, class D = P, class Arch = default_arch>
merge_backward_job<P, O, D, Arch> prepare_merge_backward(
    const merge_backward_arguments<P, O, D>& arguments) {
  detail::check_merge_backward("cpu::merge_backward", arguments);
  return merge_backward_job<P, O, D, Arch>(arguments);
}

/// Refused: the job reads the lists of states and gradients, which a temporary may take with it.
/// Give the arguments a name, and keep the lists while the job runs.
template <class P = float, class O = P, class D = P, class Arch = default_arch>
merge_backward_job<P, O, D, Arch> prepare_merge_backward(
    merge_backward_arguments<P, O, D>&& arguments) = delete;

/// Bytes that merge_backward needs for up to `concurrency` workers, from shapes alone: data may be
/// null, d_sink_logits as it will be. Errors: those of merge_backward.
template <class P = float, class O = P, class D = P, class Arch = default_arch>
index_t merge_backward_workspace_size(const merge_backward_arguments<P, O, D>& arguments,
                                      index_t concurrency) {
  detail::check_merge_backward_shapes("cpu::merge_backward_workspace_size", arguments,
                                      detail::memory_state::not_yet);
  return workspace_size(merge_backward_job<P, O, D, Arch>(arguments), concurrency);
}

/// The gradient of `merge`, for every token and head. With p_s = exp(w_s - lse) the share of state
/// s, sinks included, and o and lse the merged state:
///   d_o_s = p_s d_o
///   d_w_s = p_s (d_o . (o_s - o) + d_lse),   d_lse_s = log_weight_scale_s d_w_s
///   d_row_log_weights_s = d_w_s,   d_sink = sum over tokens of exp(sink - lse) (d_lse - d_o . o)
/// The gradient of a log_weight is the sum of d_w_s over its rows, which d_row_log_weights gives
/// when the weight is passed there. `=`, every wanted element is written. o and lse are not asked
/// for: they are recomputed from the states, so a merged o in 16 bits costs no accuracy. States
/// that are absent or whose weight is 0 in a row get gradient 0 there; their o is not read and may
/// hold anything. Throws `error` on shapes that disagree, a gradient of what is not there,
/// gradients that begin where other tensors do. Bound by memory: each o is read once, each d_o_s
/// written once. Same bits for every executor. Workspace: 2 * states + value_dim values for each
/// worker, and heads / 16 values per token when d_sink_logits is wanted.
template <class P = float, class O = P, class D = P, class Arch = default_arch, class Executor>
requires executor<std::remove_reference_t<Executor>>
void merge_backward(const merge_backward_arguments<P, O, D>& arguments,
                    Executor&& workers,
                    std::span<std::byte> workspace) {
  run_job("cpu::merge_backward", prepare_merge_backward<P, O, D, Arch>(arguments), workers,
          workspace);
}

/// The same with a workspace allocated for this call.
template <class P = float,
          class O = P,
          class D = P,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void merge_backward(const merge_backward_arguments<P, O, D>& arguments,
                    Executor&& workers = Executor{}) {
  const auto job = prepare_merge_backward<P, O, D, Arch>(arguments);
  run_job("cpu::merge_backward", job, workers);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
