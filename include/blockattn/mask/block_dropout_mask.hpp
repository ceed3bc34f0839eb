// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/block_dropout_options.hpp>
#include <blockattn/mask/block_slice_merger.hpp>
#include <cstdint>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// A drawn mask and what the loss needs to know of it.
struct block_dropout_draw {
  attention_mask mask;
  /// (sequences) the block that has the final block's role; -1 for a sequence without one.
  std::vector<index_t> final_blocks;
  /// (tokens) 1 where a row learns to read other blocks, and may carry loss: the tokens, without
  /// sinks, of all blocks (hide_pairs), of the final block (hide_context, random_final) or of the
  /// global blocks (global_blocks, the final one included). 0 elsewhere.
  std::vector<std::uint8_t> loss_tokens;
};

namespace detail {

/// The draws of one sequence.
class sequence_dropout {
 public:
  /// What a block sees of the earlier blocks.
  enum class scope { local, drawn, global };

  /// \param blocks    the sequence's token blocks, without a shared sink set; not empty
  /// \param numbering what to subtract from a block for its number in the layout without shared
  ///   sets: sinks of any kind leave the draws as they are
  sequence_dropout(const block_layout& layout,
                   const index_range& blocks,
                   index_t numbering,
                   const block_dropout_options& options)
      : options_(&options), numbering_(numbering), final_block_(blocks.end - 1) {
    const index_t last = final_block_ - numbering;
    if (options.rule != block_dropout_rule::random_final || draws_kept(options, last, last)) return;
    std::vector<index_t> candidates;
    for (index_t b = blocks.begin; b < blocks.end; ++b) {
      if (!layout.source_range(b).empty()) candidates.push_back(b);
    }
    if (candidates.empty()) return;
    // No key block is later than its query block: this pair is free. The remainder favours no
    // candidate by more than candidates * 2^-64.
    const std::uint64_t bits = random_bits(options.seed, static_cast<std::uint64_t>(last),
                                           static_cast<std::uint64_t>(last + 1));
    final_block_ = candidates[bits % candidates.size()];
  }

  index_t final_block() const noexcept { return final_block_; }

  /// `block` is not after the final block.
  scope scope_of(index_t block) const noexcept {
    switch (options_->rule) {
      case block_dropout_rule::hide_pairs:
        return block == final_block_ && options_->exempt_final_block ? scope::global : scope::drawn;
      case block_dropout_rule::hide_context:
        return block == final_block_ ? scope::drawn : scope::local;
      case block_dropout_rule::global_blocks:
        return block == final_block_ || !keeps(block, block) ? scope::global : scope::local;
      case block_dropout_rule::random_final:
        break;
    }
    return block == final_block_ ? scope::global : scope::local;
  }

  bool keeps(index_t query_block, index_t key_block) const noexcept {
    return draws_kept(*options_, query_block - numbering_, key_block - numbering_);
  }

 private:
  const block_dropout_options* options_;
  index_t numbering_;
  index_t final_block_;
};

/// Adds what the row sees of an earlier block: its tokens, its sinks, both or nothing.
inline void add_earlier_block(block_slice_merger& merger,
                              const block_layout& layout,
                              index_t block,
                              bool seen,
                              sink_visibility visibility) {
  const index_range sinks = layout.sink_tokens(block);
  const index_range content = layout.content_tokens(block);
  const bool sinks_seen =
      visibility == sink_visibility::all || (visibility == sink_visibility::own_and_final && seen);
  const bool sinks_first = sinks.begin <= content.begin;
  if (sinks_seen && sinks_first) merger.add(sinks, false);
  if (seen) merger.add(content, false);
  if (sinks_seen && !sinks_first) merger.add(sinks, false);
}

}  // namespace detail

/// Block dropout (block distillation, arXiv 2605.15913): a mask drawn from a layout, so that blocks
/// other than the final one learn to read other blocks, or the final one learns to do without some.
///
///     visible(i, j) = j <= i, same sequence, and (b(i) = b(j), or b(i) sees b(j))
///
/// where the rule draws which blocks see which (see block_dropout_rule; sink tokens:
/// block_dropout_options). Hidden pairs are masked before softmax; nothing is rescaled.
///
/// Each draw is a function of (seed, query block, key block) alone: blocks are numbered over the
/// whole layout, sequences draw apart, and neither the platform, the order of drawing nor sink
/// tokens change it. A block that is or is not global draws (block, block), random_final
/// (final, final) for keeping it and (final, final + 1) for the choice.
///
/// Neighbouring blocks are merged into one slice where they form one. O(blocks^2) time and slices
/// at worst (hide_pairs, or sinks seen apart from their block), else O(blocks log blocks); plus
/// O(tokens) for loss_tokens. Errors: keep_probability outside [0, 1] or NaN; exempt_final_block
/// with a rule other than hide_pairs; a value that is in no enumeration; a sequence of blocks
/// without a final one, unless the rule is hide_pairs without exempt_final_block.
inline block_dropout_draw draw_block_dropout(const block_layout& layout,
                                             const block_dropout_options& options) {
  using scope = detail::sequence_dropout::scope;
  detail::check_block_dropout(options);
  block_dropout_draw draw;
  draw.loss_tokens.assign(static_cast<std::size_t>(layout.tokens()), 0);
  detail::block_slice_merger merger;
  const bool sinks_follow_block = !layout.has_sinks() ||
                                  options.sink_visibility == sink_visibility::own_and_final ||
                                  layout.sink_options().sharing == sink_sharing::shared;
  const bool needs_final_block =
      options.rule != block_dropout_rule::hide_pairs || options.exempt_final_block;
  index_t shared_sets = 0;
  for (index_t s = 0; s < layout.sequences(); ++s) {
    index_range blocks = layout.sequence_blocks(s);
    if (blocks.empty()) {
      draw.final_blocks.push_back(-1);
      continue;
    }
    if (needs_final_block) detail::require_final_block("draw_block_dropout", layout, s);
    index_range shared_set;
    if (layout.is_shared_sink_block(blocks.begin)) {
      shared_set = layout.block(blocks.begin++);
      ++shared_sets;
      merger.begin_row(shared_set);
      merger.add(shared_set, true);
      merger.end_row();
    }
    const detail::sequence_dropout dropout(layout, blocks, shared_sets, options);
    draw.final_blocks.push_back(layout.has_final_block(s) ? dropout.final_block() : -1);
    for (index_t b = blocks.begin; b <= dropout.final_block(); ++b) {
      const index_range queries = layout.block(b);
      if (queries.empty()) continue;
      const scope sees = dropout.scope_of(b);
      merger.begin_row(queries);
      merger.add(shared_set, false);
      if (sinks_follow_block && sees != scope::drawn) {
        if (sees == scope::global)
          merger.add({layout.block(blocks.begin).begin, queries.begin}, false);
      } else {
        for (index_t c = blocks.begin; c < b; ++c) {
          const bool seen = sees == scope::global || (sees == scope::drawn && dropout.keeps(b, c));
          detail::add_earlier_block(merger, layout, c, seen, options.sink_visibility);
        }
      }
      merger.add(queries, true);
      merger.end_row();
      if (sees == scope::local) continue;
      const index_range content = layout.content_tokens(b);
      std::fill_n(draw.loss_tokens.begin() + content.begin, content.size(), std::uint8_t{1});
    }
  }
  draw.mask = attention_mask::from_disjoint_slices(layout.tokens(), layout.tokens(), merger.take());
  return draw;
}

/// The mask of draw_block_dropout.
inline attention_mask block_dropout_mask(const block_layout& layout,
                                         const block_dropout_options& options) {
  return draw_block_dropout(layout, options).mask;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
