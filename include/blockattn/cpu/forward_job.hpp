// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/checks.hpp>
#include <blockattn/cpu/online_tile.hpp>
#include <blockattn/cpu/pack_seen.hpp>
#include <blockattn/cpu/tile_mask.hpp>
#include <blockattn/cpu/tile_shape.hpp>
#include <blockattn/softmax/softmax_state.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI {

namespace detail {

/// What the micro-kernel multiplies for these storage types: pairs of bf16 where all three operands
/// are bf16 and the machine multiplies them, else the accumulator.
template <class Arch, class Q, class K, class V>
struct panel_for {
  static constexpr bool all_bf16 = format_of<Q> == storage_format::bf16 &&
                                   format_of<K> == storage_format::bf16 &&
                                   format_of<V> == storage_format::bf16;
#if defined(__AVX512BF16__)
  using type = std::conditional_t<all_bf16 && is_avx512<Arch>, bf16_pair, accumulator_t<Q, K, V>>;
#else
  using type = accumulator_t<Q, K, V>;
#endif
};

}  // namespace detail

/// A checked forward call, cut into tasks for engines that bring their own threads:
///   auto job = cpu::prepare_forward(arguments, plan, options);
///   for (index_t phase = 0; phase < job.phases(); ++phase)  // all threads meet between phases
///     for (each task in [0, job.tasks(phase)))              // any thread, any order;
///                                                           // low numbers first is best
///       job.run(phase, task, worker, workspace);            // worker: this thread's number
///                                                           // in [0, concurrency)
/// The workspace has workspace_size(job, concurrency) bytes, aligned to workspace_alignment.
/// Results do not depend on which worker runs which task. The job refers to the plans and tensors:
/// they must outlive it.
template <class Q, class K, class V, class O, class Arch>
class forward_job {
 public:
  using panel = typename detail::panel_for<Arch, Q, K, V>::type;
  using tile = detail::online_tile<panel, Arch>;
  using C = typename tile::C;

  forward_job(const forward_arguments<Q, K, V, O>& arguments,
              const plan_set& plans,
              const attention_options& options)
      : arguments_(arguments),
        plans_(plans),
        transform_(detail::score_transform<C>::template from<panel>(
            detail::resolved_scale(options.scale, arguments.q.head_dim), options.softcap)) {
    group_ = arguments.k.heads > 0 ? arguments.q.heads / arguments.k.heads : 1;
    sizes_.head_dim = arguments.q.head_dim;
    sizes_.value_dim = arguments.v.head_dim;
    for (const tile_plan& plan : plans.plans()) {
      query_tiles_ = std::max(query_tiles_, plan.by_query().outer_tiles);
      sizes_.rows = std::max(sizes_.rows, std::min(plan.shape().queries, arguments.q.tokens));
      // A key tile may start inside a panel.
      sizes_.columns = std::max(
          sizes_.columns,
          round_up(std::min(plan.shape().keys, arguments.k.tokens), tile::width) + tile::width);
    }
    every_key_is_seen_ = detail::every_key_is_seen(plans);
    values_in_place_ = can_read_values_in_place();
    padded_keys_ = round_up(arguments.k.tokens, tile::width);
    key_panel_size_ = detail::saturating_multiply(
        detail::steps_for<panel, Arch>(arguments.q.head_dim), padded_keys_);
    value_steps_ = detail::steps_for<panel, Arch>(padded_keys_);
    value_panel_size_ = values_in_place_
                            ? 0
                            : detail::saturating_multiply(
                                  value_steps_, round_up(arguments.v.head_dim, tile::width));
    detail::workspace_layout layout;
    keys_offset_ =
        layout.take<panel>(detail::saturating_multiply(arguments.k.heads, key_panel_size_));
    values_offset_ =
        layout.take<panel>(detail::saturating_multiply(arguments.k.heads, value_panel_size_));
    shared_size_ = layout.size();
  }

  /// Phase 0 packs keys and values, phase 1 attends.
  static constexpr index_t phases() noexcept { return 2; }
  index_t tasks(index_t phase) const noexcept {
    return phase == 0 ? arguments_.k.heads * pack_chunks() : arguments_.q.heads * query_tiles_;
  }
  void run(index_t phase,
           index_t task,
           index_t worker,
           std::span<std::byte> workspace) const noexcept {
    if (phase == 0) {
      pack(task / pack_chunks(), task % pack_chunks(), workspace);
    } else {
      attend(task / query_tiles_, task % query_tiles_, worker, workspace);
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
  /// Keys that one packing task takes.
  static constexpr index_t pack_chunk = round_up(512, tile::width);
  index_t pack_chunks() const noexcept { return ceil_divide(arguments_.k.tokens, pack_chunk); }

  panel* key_panels(std::span<std::byte> workspace, index_t kv_head) const noexcept {
    return detail::piece<panel>(workspace, keys_offset_) + kv_head * key_panel_size_;
  }
  panel* value_panels(std::span<std::byte> workspace, index_t kv_head) const noexcept {
    return detail::piece<panel>(workspace, values_offset_) + kv_head * value_panel_size_;
  }

  /// Values are read where they lie when they are of the right type, their rows are whole panels
  /// that follow one another, and no unseen row (which may hold NaN) could meet a weight of 0.
  /// Measured on Zen 4: packing adjacent rows gains nothing; rows interleaved with those of other
  /// heads, read in place, cost 10 % of the forward, packing them 0.2 %.
  bool can_read_values_in_place() const noexcept {
    return std::is_same_v<V, panel> && arguments_.v.head_dim % tile::width == 0 &&
           arguments_.v.token_stride == arguments_.v.head_dim && every_key_is_seen_;
  }

  void pack(index_t kv_head, index_t chunk, std::span<std::byte> workspace) const noexcept {
    const index_range keys{chunk * pack_chunk,
                           std::min((chunk + 1) * pack_chunk, arguments_.k.tokens)};
    const index_t head_dim = arguments_.k.head_dim;
    panel* const packed_keys = key_panels(workspace, kv_head);
    for (index_t j = keys.begin; j < keys.end; j += tile::width) {
      detail::pack_key_panel<panel, Arch>(
          arguments_.k.row(j, kv_head), arguments_.k.token_stride,
          std::min(tile::width, keys.end - j), head_dim,
          packed_keys + j * detail::steps_for<panel, Arch>(head_dim));
    }
    if (values_in_place_) return;
    panel* const packed_values = value_panels(workspace, kv_head);
    const index_t first = keys.begin / detail::operand<panel, Arch>::values_per_step;
    const index_t steps = detail::steps_for<panel, Arch>(keys.size());
    if (!every_key_is_seen_ || keys.size() < pack_chunk) {
      for (index_t p = 0; p < value_panel_size_; p += value_steps_ * tile::width) {
        std::fill_n(packed_values + p + first * tile::width, steps * tile::width, panel{});
      }
    }
    detail::pack_seen_values<panel, Arch>(plans_, {kv_head * group_, (kv_head + 1) * group_},
                                          arguments_.v, kv_head, keys, 0, value_steps_,
                                          packed_values);
  }

  void attend(index_t head,
              index_t rank,
              index_t worker,
              std::span<std::byte> workspace) const noexcept {
    const tile_plan& plan = plans_.of_head(head);
    if (rank >= plan.by_query().outer_tiles) return;  // another plan of the set has smaller tiles
    const index_t query_tile = plan.by_query().order[static_cast<std::size_t>(rank)];
    const index_range queries = plan.query_tile(query_tile);
    tile work(sizes_, workspace.subspan(
                          static_cast<std::size_t>(shared_size_ + worker * tile::bytes(sizes_))));
    work.begin(queries.size(), transform_);
    for (index_t row = 0; row < queries.size(); ++row) {
      detail::pack_row<panel, Arch>(arguments_.q.row(queries.begin + row, head),
                                    arguments_.q.head_dim, transform_.q_factor, work.q_row(row));
    }
    for (const tile_span& span : plan.by_query().spans_of(query_tile)) {
      const detail::tile_slices slices{&plan.slices(), plan.by_query().slices_of(span)};
      for (index_t key_tile = span.inner_begin; key_tile < span.inner_end; ++key_tile) {
        take_key_tile(work, queries, plan.key_tile(key_tile), slices, head / group_, workspace);
      }
    }
    write(work, queries, head);
  }

  /// One key tile; no slices = full.
  void take_key_tile(tile& work,
                     const index_range& queries,
                     const index_range& keys,
                     const detail::tile_slices& slices,
                     index_t kv_head,
                     std::span<std::byte> workspace) const noexcept {
    const index_t origin = keys.begin / tile::width * tile::width;
    const auto to_columns = [&](const index_range& r) {
      return index_range{r.begin - origin, r.end - origin};
    };
    const bool full = slices.ids.empty();
    if (full) {
      work.set_columns(to_columns(keys));
    } else {
      for (index_t g = 0; g < work.groups(); ++g) {
        const index_range rows = work.group(g);
        work.columns_of_group(g) =
            to_columns(reach(slices, {queries.begin + rows.begin, queries.begin + rows.end}, keys));
      }
    }
    const index_range columns{0, keys.end - origin};
    work.score_packed(
        key_panels(workspace, kv_head) + origin * detail::steps_for<panel, Arch>(sizes_.head_dim),
        columns);
    if (full) {
      work.softmax([&](index_t /*row*/, index_range* runs) {
        runs[0] = to_columns(keys);
        return index_t{1};
      });
    } else {
      work.softmax([&](index_t row, index_range* runs) {
        const index_t count = sorted_runs(slices, queries.begin + row, keys, runs);
        for (index_t r = 0; r < count; ++r) runs[r] = to_columns(runs[r]);
        return count;
      });
    }
    if constexpr (std::is_same_v<V, panel>) {
      if (values_in_place_) {
        work.add_values(arguments_.v.row(origin, kv_head), tile::width, arguments_.v.token_stride,
                        columns);
        return;
      }
    }
    work.add_values(value_panels(workspace, kv_head) +
                        origin / detail::operand<panel, Arch>::values_per_step * tile::width,
                    value_steps_ * tile::width, tile::width, columns);
  }

  void write(const tile& work, const index_range& queries, index_t head) const noexcept {
    const C sink = arguments_.sink_logits.empty()
                       ? -std::numeric_limits<C>::infinity()
                       : arguments_.sink_logits[static_cast<std::size_t>(head)];
    for (index_t row = 0; row < queries.size(); ++row) {
      const auto done = work.finish(row);
      const sink_result<C> sunk = apply_sink_logit<Arch>(done.lse, sink);
      const index_t query = queries.begin + row;
      detail::store_row<Arch>(done.o, arguments_.o.head_dim, done.factor * sunk.output_scale,
                              arguments_.o.row(query, head));
      if (arguments_.lse) arguments_.lse.at(query, head) = sunk.lse;
    }
  }

  forward_arguments<Q, K, V, O> arguments_;
  plan_set plans_;
  detail::score_transform<C> transform_;
  detail::online_tile_sizes sizes_;
  index_t group_ = 1;
  index_t query_tiles_ = 0;  ///< most of any plan
  bool every_key_is_seen_ = false;
  bool values_in_place_ = false;
  index_t padded_keys_ = 0;
  index_t key_panel_size_ = 0;    ///< Panel elements of one kv head
  index_t value_steps_ = 0;       ///< of one value panel
  index_t value_panel_size_ = 0;  ///< Panel elements of one kv head; 0 when read in place
  index_t keys_offset_ = 0;
  index_t values_offset_ = 0;
  index_t shared_size_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI
