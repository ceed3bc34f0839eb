// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_checks.hpp>
#include <blockattn/cpu/gradient_tile.hpp>
#include <blockattn/cpu/key_chunks.hpp>
#include <blockattn/cpu/pack_seen.hpp>
#include <blockattn/cpu/tile_mask.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

/// A checked backward call, cut into tasks; run it like a forward_job. Arguments is a
/// backward_arguments. Phases:
///   0. row sums: lse and delta of every query row
///   1. key tiles: d_k and d_v, each key tile owned by one task, and partial sums of d_q
///   2. query tiles: the partial sums of d_q in order; d_sink_logits
/// Who owns what follows from the shape alone, so every number of threads gives the same bits.
template <class Arguments, class Arch>
class backward_job {
 public:
  using C = typename Arguments::accumulator_type;
  using tile = detail::gradient_tile<C, Arch>;

  backward_job(const Arguments& arguments,
               const plan_set& plans,
               const attention_options& options,
               detail::accumulate_mode mode)
      : arguments_(arguments),
        plans_(plans),
        transform_(detail::score_transform<C>::from(
            detail::resolved_scale(options.scale, arguments.q.head_dim), options.softcap)),
        scale_(static_cast<C>(detail::resolved_scale(options.scale, arguments.q.head_dim))),
        mode_(mode) {
    group_ = arguments.k.heads > 0 ? arguments.q.heads / arguments.k.heads : 1;
    sizes_.head_dim = arguments.q.head_dim;
    sizes_.value_dim = arguments.v.head_dim;
    index_t key_tiles = 0;
    for (const tile_plan& plan : plans.plans()) {
      query_tiles_ = std::max(query_tiles_, plan.by_query().outer_tiles);
      key_tiles = std::max(key_tiles, plan.by_key().outer_tiles);
      sizes_.rows = std::max(sizes_.rows, std::min(plan.shape().queries, arguments.q.tokens));
      sizes_.columns = std::max(sizes_.columns, std::min(plan.shape().keys, arguments.k.tokens));
    }
    every_key_is_seen_ = detail::every_key_is_seen(plans);
    chunks_ = detail::key_chunk_count(arguments.k.heads, key_tiles);
    d_q_stride_ = round_up(arguments.q.head_dim, tile::width);
    const index_t rows = detail::saturating_multiply(arguments.q.heads, arguments.q.tokens);
    detail::workspace_layout layout;
    rows_offset_ = layout.take<detail::row_gradient<C>>(rows);
    touched_offset_ = layout.take<unsigned char>(
        detail::saturating_multiply(arguments.q.heads, chunks_, touched_stride()));
    d_q_offset_ = layout.take<C>(detail::saturating_multiply(rows, chunks_, d_q_stride_));
    shared_size_ = layout.size();
  }

  static constexpr index_t phases() noexcept { return 3; }
  index_t tasks(index_t phase) const noexcept {
    const index_t heads = arguments_.q.heads;
    if (phase == 0) return heads * row_chunks();
    if (phase == 1) return arguments_.k.heads * chunks_;
    return heads * query_tiles_ + static_cast<index_t>(arguments_.d_sink_logits.size());
  }
  void run(index_t phase,
           index_t task,
           index_t worker,
           std::span<std::byte> workspace) const noexcept {
    const index_t query_tasks = arguments_.q.heads * query_tiles_;
    if (phase == 0) {
      sum_rows(task / row_chunks(), task % row_chunks(), workspace);
    } else if (phase == 1) {
      take_chunk(task / chunks_, task % chunks_, worker, workspace);
    } else if (task < query_tasks) {
      finish_queries(task / query_tiles_, task % query_tiles_, workspace);
    } else {
      finish_sink(task - query_tasks, workspace);
    }
  }
  index_t workspace_size(index_t concurrency) const noexcept {
    return detail::saturating_add(shared_size_,
                                  detail::saturating_multiply(concurrency, tile::bytes(sizes_)));
  }
  /// Calls visit(name, view) for every tensor of the call.
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    detail::visit_memory(arguments_, visit);
  }

 private:
  /// Rows that one task of phase 0 takes.
  static constexpr index_t row_chunk = 256;
  index_t row_chunks() const noexcept { return ceil_divide(arguments_.q.tokens, row_chunk); }

  detail::row_gradient<C>* rows_of(std::span<std::byte> workspace, index_t head) const noexcept {
    return detail::piece<detail::row_gradient<C>>(workspace, rows_offset_) +
           head * arguments_.q.tokens;
  }
  /// Tasks that run at the same time write to cache lines of their own.
  index_t touched_stride() const noexcept { return round_up(query_tiles_, workspace_alignment); }
  /// (query_tiles) whether a chunk of a head has sums for a query tile.
  unsigned char* touched_of(std::span<std::byte> workspace,
                            index_t head,
                            index_t chunk) const noexcept {
    return detail::piece<unsigned char>(workspace, touched_offset_) +
           (head * chunks_ + chunk) * touched_stride();
  }
  /// (query_tokens, d_q_stride) sums of d_q of one chunk of a head.
  C* d_q_of(std::span<std::byte> workspace, index_t head, index_t chunk) const noexcept {
    return detail::piece<C>(workspace, d_q_offset_) +
           (head * chunks_ + chunk) * arguments_.q.tokens * d_q_stride_;
  }

  void sum_rows(index_t head, index_t chunk, std::span<std::byte> workspace) const noexcept {
    const index_t end = std::min(arguments_.q.tokens, (chunk + 1) * row_chunk);
    index_t i = chunk * row_chunk;
    for (; i + 8 <= end; i += 8) sum_some_rows<8>(head, i, workspace);
    for (; i < end; ++i) sum_some_rows<1>(head, i, workspace);
  }

  template <int Rows>
  void sum_some_rows(index_t head, index_t first, std::span<std::byte> workspace) const noexcept {
    C sums[std::size_t{Rows}];
    detail::dot_each<Arch, Rows>(arguments_.d_o.row(first, head), arguments_.d_o.token_stride,
                                 arguments_.o.row(first, head), arguments_.o.token_stride,
                                 arguments_.o.head_dim, sums);
    for (int r = 0; r < Rows; ++r) {
      const index_t i = first + r;
      rows_of(workspace, head)[i] = {
          .lse = arguments_.lse.at(i, head),
          .delta = sums[r] - (arguments_.d_lse ? arguments_.d_lse.at(i, head) : C(0))};
    }
  }

  void take_chunk(index_t kv_head,
                  index_t chunk,
                  index_t worker,
                  std::span<std::byte> workspace) const noexcept {
    tile work(sizes_, workspace.subspan(
                          static_cast<std::size_t>(shared_size_ + worker * tile::bytes(sizes_))));
    const index_t first_head = kv_head * group_;
    for (index_t head = first_head; head < first_head + group_; ++head) {
      std::fill_n(touched_of(workspace, head, chunk), query_tiles_, static_cast<unsigned char>(0));
    }
    // Heads of a group have key tiles of one size: those of the first serve all. (Without heads
    // there is one plan, and d_k and d_v are 0.)
    const tile_plan& plan = plans_.of_head(first_head);
    const index_range key_tiles = detail::key_tiles_of_chunk(plan.by_key(), chunk, chunks_);
    for (index_t key_tile = key_tiles.begin; key_tile < key_tiles.end; ++key_tile) {
      const index_range keys = plan.key_tile(key_tile);
      pack_keys(work, kv_head, keys);
      for (index_t head = first_head; head < first_head + group_; ++head) {
        take_key_tile(work, head, key_tile, chunk, workspace);
      }
      for (index_t j = keys.begin; j < keys.end; ++j) {
        // The scale, or what softcap leaves of it, went into q.
        detail::store_row<Arch>(work.d_k_row(j - keys.begin), arguments_.k.head_dim,
                                transform_.cap != 0 ? transform_.cap : C(1),
                                arguments_.d_k.row(j, kv_head), mode_);
        detail::store_row<Arch>(work.d_v_row(j - keys.begin), arguments_.v.head_dim, C(1),
                                arguments_.d_v.row(j, kv_head), mode_);
      }
    }
  }

  void pack_keys(tile& work, index_t kv_head, const index_range& keys) const noexcept {
    const index_t head_dim = arguments_.k.head_dim;
    const index_t value_dim = arguments_.v.head_dim;
    work.begin_keys(keys.size());
    for (index_t j = 0; j < keys.size(); j += tile::width) {
      const index_t count = std::min(tile::width, keys.size() - j);
      detail::pack_key_panel<C, Arch>(arguments_.k.row(keys.begin + j, kv_head),
                                      arguments_.k.token_stride, count, head_dim,
                                      work.key_columns() + j * head_dim);
      detail::pack_key_panel<C, Arch>(arguments_.v.row(keys.begin + j, kv_head),
                                      arguments_.v.token_stride, count, value_dim,
                                      work.value_columns() + j * value_dim);
    }
    // A key that nobody sees may hold NaN, and here it meets gradients of 0.
    if (!every_key_is_seen_) std::fill_n(work.key_rows(), sizes_.columns * d_q_stride_, C(0));
    detail::pack_seen_values<C, Arch>(plans_, {kv_head * group_, (kv_head + 1) * group_},
                                      arguments_.k, kv_head, keys, keys.begin, sizes_.columns,
                                      work.key_rows());
  }

  void take_key_tile(tile& work,
                     index_t head,
                     index_t key_tile,
                     index_t chunk,
                     std::span<std::byte> workspace) const noexcept {
    const tile_plan& plan = plans_.of_head(head);
    const index_range keys = plan.key_tile(key_tile);
    const detail::row_gradient<C>* const rows = rows_of(workspace, head);
    for (const tile_span& span : plan.by_key().spans_of(key_tile)) {
      const detail::tile_slices slices{&plan.slices(), plan.by_key().slices_of(span)};
      for (index_t query_tile = span.inner_begin; query_tile < span.inner_end; ++query_tile) {
        const index_range queries = plan.query_tile(query_tile);
        pack_queries(work, head, queries);
        set_columns(work, queries, keys, slices);
        work.score();
        const auto gradient_of = [&](index_t row) { return rows[queries.begin + row]; };
        if (slices.ids.empty()) {
          work.gradients_of_full(transform_, gradient_of);
        } else {
          work.gradients_of_partial(transform_, gradient_of, [&](index_t row, index_range* runs) {
            const index_t count = sorted_runs(slices, queries.begin + row, keys, runs);
            for (index_t r = 0; r < count; ++r) {
              runs[r] = {runs[r].begin - keys.begin, runs[r].end - keys.begin};
            }
            return count;
          });
        }
        work.add_to_keys();
        C* const d_q = d_q_of(workspace, head, chunk) + queries.begin * d_q_stride_;
        unsigned char& touched = touched_of(workspace, head, chunk)[query_tile];
        if (touched == 0) std::fill_n(d_q, queries.size() * d_q_stride_, C(0));
        touched = 1;
        work.add_to_queries(d_q, d_q_stride_);
      }
    }
  }

  void pack_queries(tile& work, index_t head, const index_range& queries) const noexcept {
    work.begin_queries(queries.size());
    for (index_t row = 0; row < queries.size(); ++row) {
      const index_t query = queries.begin + row;
      detail::load_row<Arch>(arguments_.q.row(query, head), arguments_.q.head_dim,
                             transform_.q_factor, work.q_row(row));
      detail::load_row<Arch>(arguments_.d_o.row(query, head), arguments_.o.head_dim, 1,
                             work.d_o_row(row));
    }
  }

  static void set_columns(tile& work,
                          const index_range& queries,
                          const index_range& keys,
                          const detail::tile_slices& slices) noexcept {
    for (index_t g = 0; g < work.groups(); ++g) {
      const index_range rows = work.group(g);
      const index_range seen =
          slices.ids.empty()
              ? keys
              : reach(slices, {queries.begin + rows.begin, queries.begin + rows.end}, keys);
      work.columns_of_group(g) = {seen.begin - keys.begin, seen.end - keys.begin};
    }
  }

  void finish_queries(index_t head,
                      index_t query_tile,
                      std::span<std::byte> workspace) const noexcept {
    const tile_plan& plan = plans_.of_head(head);
    if (query_tile >= plan.by_query().outer_tiles) return;  // another plan has smaller tiles
    const index_range queries = plan.query_tile(query_tile);
    C* sum = nullptr;
    for (index_t chunk = 0; chunk < chunks_; ++chunk) {
      if (touched_of(workspace, head, chunk)[query_tile] == 0) continue;
      C* const part = d_q_of(workspace, head, chunk) + queries.begin * d_q_stride_;
      if (sum == nullptr) {
        sum = part;
      } else {
        detail::add_row<Arch>(part, queries.size() * d_q_stride_, sum);
      }
    }
    for (index_t row = 0; row < queries.size(); ++row) {
      // Rows that see nothing: a factor of 0 reads nothing.
      detail::store_row<Arch>(sum != nullptr ? sum + row * d_q_stride_ : nullptr,
                              arguments_.q.head_dim, sum != nullptr ? scale_ : C(0),
                              arguments_.d_q.row(queries.begin + row, head), mode_);
    }
  }

  /// d_sink = sum over rows of p_sink (d_lse - d_o . o): a key whose value is 0.
  void finish_sink(index_t head, std::span<std::byte> workspace) const noexcept {
    const auto at = static_cast<std::size_t>(head);
    const C sink = arguments_.sink_logits[at];
    double sum = 0;
    for (index_t i = 0; i < arguments_.q.tokens && !std::isinf(sink); ++i) {
      const double share =
          std::exp(static_cast<double>(sink) - static_cast<double>(arguments_.lse.at(i, head)));
      sum -= share * static_cast<double>(rows_of(workspace, head)[i].delta);
    }
    C& out = arguments_.d_sink_logits[at];
    out = static_cast<C>(mode_ == detail::accumulate_mode::add ? static_cast<double>(out) + sum
                                                               : sum);
  }

  Arguments arguments_;
  plan_set plans_;
  detail::score_transform<C> transform_;
  C scale_;
  detail::accumulate_mode mode_;
  detail::gradient_tile_sizes sizes_;
  index_t group_ = 1;
  index_t query_tiles_ = 0;  ///< most of any plan
  bool every_key_is_seen_ = false;
  index_t chunks_ = 1;
  index_t d_q_stride_ = 0;
  index_t rows_offset_ = 0;
  index_t touched_offset_ = 0;
  index_t d_q_offset_ = 0;
  index_t shared_size_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
