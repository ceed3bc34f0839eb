// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_arguments.hpp>
#include <blockattn/cpu/run_job.hpp>
#include <blockattn/cpu/simd.hpp>
#include <blockattn/softmax/softmax_state.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// A checked merge call, cut into tasks; run it like a forward_job.
template <class P, class O, class Arch>
class merge_job {
 public:
  using C = accumulator_t<P, O>;

  explicit merge_job(const merge_arguments<P, O>& arguments) noexcept : arguments_(arguments) {
    detail::workspace_layout layout;
    const auto states = static_cast<index_t>(arguments.states.size());
    states_offset_ = layout.take<softmax_state<C, P>>(states);
    weights_offset_ = layout.take<C>(states);
    worker_size_ = layout.size();
  }

  static constexpr index_t phases() noexcept { return 1; }
  index_t tasks(index_t /*phase*/) const noexcept {
    return ceil_divide(arguments_.o.tokens, task_tokens);
  }
  index_t workspace_size(index_t concurrency) const noexcept {
    return detail::saturating_multiply(concurrency, worker_size_);
  }
  void run(index_t /*phase*/,
           index_t task,
           index_t worker,
           std::span<std::byte> workspace) const noexcept {
    const auto scratch = workspace.subspan(static_cast<std::size_t>(worker * worker_size_));
    const index_t end = std::min(arguments_.o.tokens, (task + 1) * task_tokens);
    for (index_t token = task * task_tokens; token < end; ++token) {
      for (index_t head = 0; head < arguments_.o.heads; ++head) merge_row(token, head, scratch);
    }
  }
  /// Calls visit(name, view) for every tensor of the call.
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    detail::visit_memory(arguments_, visit);
  }

 private:
  static constexpr index_t task_tokens = 16;

  void merge_row(index_t token, index_t head, std::span<std::byte> scratch) const noexcept {
    const auto value_dim = static_cast<std::size_t>(arguments_.o.head_dim);
    const std::span states(detail::piece<softmax_state<C, P>>(scratch, states_offset_),
                           arguments_.states.size());
    const std::span weights(detail::piece<C>(scratch, weights_offset_), arguments_.states.size());
    for (std::size_t s = 0; s < states.size(); ++s) {
      const auto& state = arguments_.states[s];
      states[s] = {{state.o.row(token, head), value_dim}, state.lse.at(token, head)};
      weights[s] = weighted_lse<Arch>(states[s].lse, static_cast<C>(state.log_weight_scale),
                                      static_cast<C>(state.log_weight));
      const bool absent = states[s].lse == -std::numeric_limits<C>::infinity();
      if (state.row_log_weights && !absent) weights[s] += state.row_log_weights.at(token, head);
    }
    const C lse = merge_weights<Arch>(std::span<const C>(weights), weights);
    const C sink = arguments_.sink_logits.empty()
                       ? -std::numeric_limits<C>::infinity()
                       : arguments_.sink_logits[static_cast<std::size_t>(head)];
    const sink_result<C> sunk = apply_sink_logit<Arch>(lse, sink);
    for (C& weight : weights) weight *= sunk.output_scale;
    merge_rows<Arch>(std::span<const softmax_state<C, P>>(states), std::span<const C>(weights),
                     std::span<O>(arguments_.o.row(token, head), value_dim));
    if (arguments_.lse) arguments_.lse.at(token, head) = sunk.lse;
  }

  merge_arguments<P, O> arguments_;
  index_t states_offset_ = 0;
  index_t weights_offset_ = 0;
  index_t worker_size_ = 0;
};

/// Checks a merge call and cuts it into tasks. Throws what `merge` throws. O(states).
template <class P = float, class O = P, class Arch = default_arch>
merge_job<P, O, Arch> prepare_merge(const merge_arguments<P, O>& arguments) {
  detail::check_merge("cpu::merge", arguments);
  return merge_job<P, O, Arch>(arguments);
}

/// Refused: the job reads the list of states, which a temporary may take with it. Give the
/// arguments a name, and keep the list while the job runs.
template <class P = float, class O = P, class Arch = default_arch>
merge_job<P, O, Arch> prepare_merge(merge_arguments<P, O>&& arguments) = delete;

/// Bytes that merge needs for up to `concurrency` workers, from shapes alone: data may be null.
/// Errors: those of merge.
template <class P = float, class O = P, class Arch = default_arch>
index_t merge_workspace_size(const merge_arguments<P, O>& arguments, index_t concurrency) {
  detail::check_merge_shapes("cpu::merge_workspace_size", arguments, detail::memory_state::not_yet);
  return workspace_size(merge_job<P, O, Arch>(arguments), concurrency);
}

/// Joins softmax states over disjoint keys into the state over all of them, for every token and
/// head:
///   w_s = log_weight_scale_s * lse_s + log_weight_s
///   lse = log(sum_s exp(w_s) [+ exp(sink)])
///   o   = sum_s exp(w_s - lse) o_s
/// Associative and independent of order up to rounding; (0, -inf) is the identity, no states at all
/// give it. Sink logits are counted once, here: partial states exclude them. Throws `error` on
/// shapes that disagree, a missing lse or a number that is not finite. Bound by memory: each state
/// that is not -inf is read once. Same bits for every executor.
template <class P = float, class O = P, class Arch = default_arch, class Executor>
requires executor<std::remove_reference_t<Executor>>
void merge(const merge_arguments<P, O>& arguments,
           Executor&& workers,
           std::span<std::byte> workspace) {
  run_job("cpu::merge", prepare_merge<P, O, Arch>(arguments), workers, workspace);
}

/// The same with a workspace allocated for this call (states + 8 bytes each).
template <class P = float, class O = P, class Arch = default_arch, class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void merge(const merge_arguments<P, O>& arguments, Executor&& workers = Executor{}) {
  const auto job = prepare_merge<P, O, Arch>(arguments);
  run_job("cpu::merge", job, workers);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
