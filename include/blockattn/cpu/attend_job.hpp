// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_checks.hpp>
#include <blockattn/cpu/attend_split.hpp>
#include <blockattn/cpu/segment_tile.hpp>
#include <blockattn/softmax/softmax_state.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// A checked attend_blocks call, cut into tasks; run it like a forward_job.
/// Phase 0 (one task) writes the table of work, phase 1 attends, phase 2 merges the partial states
/// of sequences whose keys were cut. Holds no memory of its own: the table and the states lie in
/// the workspace.
template <class Q, class K, class V, class O, class Arch>
class attend_job {
 public:
  using C = accumulator_t<Q, K, V, O>;
  using tile = detail::segment_tile<Q, K, V, Arch>;

  attend_job(const attend_arguments<Q, K, V, O>& arguments,
             const attend_options& options,
             index_t kv_heads)
      : arguments_(arguments),
        options_(options),
        kv_heads_(kv_heads),
        group_(arguments.q.heads / kv_heads) {
    index_t most_rows = 0;
    index_t keys_by_tiles = 0;
    for (const auto& sequence : arguments.sequences) {
      const index_t rows = sequence.queries.size() * group_;
      const detail::segment_list list(sequence);
      most_rows = std::max(most_rows, rows);
      keys_by_tiles += kv_heads * ceil_divide(rows, tile::most_rows(arguments.q.head_dim)) *
                       list.keys(0, list.size());
    }
    tile_rows_ = std::min(most_rows, tile::most_rows(arguments.q.head_dim));
    chunk_keys_ = detail::keys_per_chunk(keys_by_tiles);
    index_t most_chunks = 0;
    const detail::sequence_work end =
        for_each_sequence([&](const detail::sequence_work& work, index_t /*sequence*/) {
          most_chunks = std::max(most_chunks, work.chunks);
        });
    attend_tasks_ = end.first_task;
    merge_tasks_ = end.first_merge;
    detail::workspace_layout layout;
    table_offset_ =
        layout.take<detail::sequence_work>(static_cast<index_t>(arguments.sequences.size()));
    state_o_offset_ =
        layout.take<C>(detail::saturating_multiply(end.first_state, arguments.o.head_dim));
    state_lse_offset_ = layout.take<C>(end.first_state);
    shared_size_ = layout.size();
    detail::workspace_layout worker;
    worker.take<std::byte>(tile::bytes(tile_rows_, arguments.q.head_dim, arguments.o.head_dim));
    merge_states_offset_ = worker.take<softmax_state<C>>(most_chunks);
    merge_weights_offset_ = worker.take<C>(3 * most_chunks);
    worker_size_ = worker.size();
  }

  static constexpr index_t phases() noexcept { return 3; }
  index_t tasks(index_t phase) const noexcept {
    return phase == 0 ? 1 : phase == 1 ? attend_tasks_ : merge_tasks_;
  }
  void run(index_t phase,
           index_t task,
           index_t worker,
           std::span<std::byte> workspace) const noexcept {
    auto* const table = detail::piece<detail::sequence_work>(workspace, table_offset_);
    if (phase == 0) {
      for_each_sequence(
          [&](const detail::sequence_work& work, index_t sequence) { table[sequence] = work; });
      return;
    }
    const auto begins =
        phase == 1 ? &detail::sequence_work::first_task : &detail::sequence_work::first_merge;
    const auto count = static_cast<index_t>(arguments_.sequences.size());
    // The last sequence that begins at or before the task; sequences without tasks begin where
    // their successor does.
    const auto* const after = std::upper_bound(
        table, table + count, task,
        [begins](index_t t, const detail::sequence_work& w) { return t < w.*begins; });
    const index_t sequence = after - table - 1;
    const auto scratch =
        workspace.subspan(static_cast<std::size_t>(shared_size_ + worker * worker_size_));
    if (phase == 1) {
      attend(sequence, table[sequence], task - table[sequence].first_task, workspace, scratch);
    } else {
      merge(sequence, table[sequence], task - table[sequence].first_merge, workspace, scratch);
    }
  }
  index_t workspace_size(index_t concurrency) const noexcept {
    return detail::saturating_add(shared_size_,
                                  detail::saturating_multiply(concurrency, worker_size_));
  }
  /// Calls visit(name, view) for every tensor of the call.
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    detail::visit_memory(arguments_, visit);
  }

 private:
  /// Calls f(work, sequence) for every sequence; returns the totals, as the work of a sequence past
  /// the end.
  template <class F>
  detail::sequence_work for_each_sequence(const F& f) const {
    detail::sequence_work work;
    index_t number = 0;
    for (const auto& sequence : arguments_.sequences) {
      const index_t queries = sequence.queries.size();
      work.row_tiles = tile_rows_ > 0 ? ceil_divide(queries * group_, tile_rows_) : 0;
      // A sequence without keys still needs its rows written.
      work.chunks =
          std::max<index_t>(1, detail::count_chunks(detail::segment_list(sequence), chunk_keys_));
      f(work, number++);
      work.first_task += kv_heads_ * work.row_tiles * work.chunks;
      if (work.chunks > 1) {
        work.first_state = detail::saturating_add(
            work.first_state,
            detail::saturating_multiply(work.chunks, queries, arguments_.q.heads));
        work.first_merge += queries;
      }
    }
    return work;
  }

  void attend(index_t sequence_number,
              const detail::sequence_work& work,
              index_t task,
              std::span<std::byte> workspace,
              std::span<std::byte> scratch) const noexcept {
    const auto& sequence = arguments_.sequences[static_cast<std::size_t>(sequence_number)];
    const detail::segment_list list(sequence);
    const index_t chunk = task % work.chunks;
    const index_t row_tile = task / work.chunks % work.row_tiles;
    const index_t kv_head = task / work.chunks / work.row_tiles;
    const index_range rows{row_tile * tile_rows_,
                           std::min(sequence.queries.size() * group_, (row_tile + 1) * tile_rows_)};
    tile part({.q = arguments_.q,
               .queries = sequence.queries,
               .rows = rows,
               .kv_head = kv_head,
               .group = group_,
               .value_dim = arguments_.o.head_dim,
               .options = &options_},
              tile_rows_, scratch);
    index_t number = 0;
    const key_segment<K, V>* first_segment = &sequence.tail;
    detail::for_each_chunk(list, chunk_keys_,
                           [&](const detail::key_chunk& keys, std::size_t /*partition*/) {
                             if (number++ != chunk) return;
                             first_segment = &list[keys.first_segment];
                             part.take_chunk(list, keys);
                           });

    C* const state_o = detail::piece<C>(workspace, state_o_offset_);
    C* const state_lse = detail::piece<C>(workspace, state_lse_offset_);
    const index_t value_dim = arguments_.o.head_dim;
    for (index_t row = rows.begin; row < rows.end; ++row) {
      const auto done = part.finish(row - rows.begin);
      const index_t query = row / group_;
      const index_t head = kv_head * group_ + row % group_;
      if (work.chunks > 1) {
        const index_t state = state_index(work, sequence.queries.size(), chunk, query, head);
        detail::store_row<Arch>(done.o, value_dim, done.factor, state_o + state * value_dim);
        state_lse[state] = done.lse;
      } else {
        // A log_weight of -inf takes out a partition that saw keys.
        const C lse = segment_lse(done.lse, *first_segment);
        const C factor = lse == -std::numeric_limits<C>::infinity() ? C(0) : done.factor;
        const sink_result<C> sunk = apply_sink_logit<Arch>(lse, sink_logit(head));
        detail::store_row<Arch>(done.o, value_dim, factor * sunk.output_scale,
                                arguments_.o.row(sequence.queries.begin + query, head));
        if (arguments_.lse) arguments_.lse.at(sequence.queries.begin + query, head) = sunk.lse;
      }
    }
  }

  /// Merges the chunks of one query, all heads. A chunk's weight is its part of its partition times
  /// the partition's part of the row: exp(lse_c - lse_p) * exp(w_p - log(sum_p exp(w_p))), w_p the
  /// partition's weighted lse.
  void merge(index_t sequence_number,
             const detail::sequence_work& work,
             index_t query,
             std::span<std::byte> workspace,
             std::span<std::byte> scratch) const noexcept {
    const auto& sequence = arguments_.sequences[static_cast<std::size_t>(sequence_number)];
    const detail::segment_list list(sequence);
    const index_t value_dim = arguments_.o.head_dim;
    const auto chunks = static_cast<std::size_t>(work.chunks);
    const std::span states(detail::piece<softmax_state<C>>(scratch, merge_states_offset_), chunks);
    const std::span chunk_weight(detail::piece<C>(scratch, merge_weights_offset_), chunks);
    const std::span partition_lse(chunk_weight.data() + chunks, chunks);
    const std::span partition_weight(partition_lse.data() + chunks, chunks);
    for (index_t head = 0; head < arguments_.q.heads; ++head) {
      std::size_t chunk = 0;
      std::size_t partitions = 0;
      detail::for_each_chunk(
          list, chunk_keys_, [&](const detail::key_chunk& keys, std::size_t partition) {
            const index_t state = state_index(work, sequence.queries.size(),
                                              static_cast<index_t>(chunk), query, head);
            const C lse = detail::piece<C>(workspace, state_lse_offset_)[state];
            states[chunk] = {{detail::piece<C>(workspace, state_o_offset_) + state * value_dim,
                              static_cast<std::size_t>(value_dim)},
                             lse};
            if (partition == partitions)
              partition_lse[partitions++] = -std::numeric_limits<C>::infinity();
            partition_lse[partition] = merged_lse<Arch>(partition_lse[partition], lse);
            partition_weight[partition] =
                segment_lse(partition_lse[partition], list[keys.first_segment]);
            ++chunk;
          });
      const std::span<C> in_use = partition_weight.first(partitions);
      const C lse = merge_weights<Arch>(std::span<const C>(in_use), in_use);
      const sink_result<C> sunk = apply_sink_logit<Arch>(lse, sink_logit(head));
      chunk = 0;
      detail::for_each_chunk(
          list, chunk_keys_, [&](const detail::key_chunk&, std::size_t partition) {
            const C part = std::exp(states[chunk].lse - partition_lse[partition]);
            const bool empty = states[chunk].lse == -std::numeric_limits<C>::infinity();
            chunk_weight[chunk++] =
                empty ? C(0) : part * partition_weight[partition] * sunk.output_scale;
          });
      merge_rows<Arch>(std::span<const softmax_state<C>>(states), std::span<const C>(chunk_weight),
                       std::span<O>(arguments_.o.row(sequence.queries.begin + query, head),
                                    static_cast<std::size_t>(value_dim)));
      if (arguments_.lse) arguments_.lse.at(sequence.queries.begin + query, head) = sunk.lse;
    }
  }

  static C segment_lse(C lse, const key_segment<K, V>& segment) noexcept {
    return weighted_lse<Arch>(lse, static_cast<C>(segment.log_weight_scale),
                              static_cast<C>(segment.log_weight));
  }
  index_t state_index(const detail::sequence_work& work,
                      index_t queries,
                      index_t chunk,
                      index_t query,
                      index_t head) const noexcept {
    return work.first_state + (chunk * queries + query) * arguments_.q.heads + head;
  }
  C sink_logit(index_t head) const noexcept {
    return arguments_.sink_logits.empty() ? -std::numeric_limits<C>::infinity()
                                          : arguments_.sink_logits[static_cast<std::size_t>(head)];
  }

  attend_arguments<Q, K, V, O> arguments_;
  attend_options options_;
  index_t kv_heads_;
  index_t group_;
  index_t tile_rows_ = 0;
  index_t chunk_keys_ = 1;
  index_t attend_tasks_ = 0;
  index_t merge_tasks_ = 0;
  index_t table_offset_ = 0;
  index_t state_o_offset_ = 0;
  index_t state_lse_offset_ = 0;
  index_t shared_size_ = 0;
  index_t merge_states_offset_ = 0;
  index_t merge_weights_offset_ = 0;
  index_t worker_size_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
