// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index_list.hpp>
#include <blockattn/core/range.hpp>
#include <blockattn/layout/sink_token_options.hpp>
#include <blockattn/layout/token_axis.hpp>
#include <concepts>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// A number of tokens that has to be given: leaving it out does not compile.
class block_length {
 public:
  template <std::integral Integer>
  constexpr block_length(Integer length) noexcept
      : tokens_(std::in_range<index_t>(length) ? static_cast<index_t>(length) : -1) {}
  constexpr operator index_t() const noexcept { return tokens_; }

 private:
  index_t tokens_;  ///< -1, which is refused, for what 64 signed bits do not hold
};

/// The lengths of one sequence, context and final block apart.
struct sequence_lengths {
  index_list context;        ///< (context blocks) tokens of each
  block_length final_block;  ///< tokens; 0: an empty one, so that blocks see only themselves
};

/// One packed token axis cut into token blocks: block b holds the tokens [begin, end), blocks
/// follow one another without gaps, and consecutive blocks form sequences. The last block of a
/// sequence is its final block where the caller said so: in `sequence_lengths`, or by
/// `with_final_block`. Empty blocks, an empty final block (pure block-diagonal attention),
/// sequences without blocks and an axis without tokens are legal.
///
/// A layout made by `with_sink_tokens` remembers which tokens are sinks and which *source token*
/// (index on the axis before the insertion) every other token is. In a layout without sinks each
/// token is its own source.
///
/// Accessors refuse an index outside its range with an `error`. They are O(1) unless said.
class block_layout {
 public:
  /// Zero sequences, blocks and tokens.
  block_layout() = default;

  /// One sequence of context blocks and its final block:
  ///     block_layout::from_sequence({.context = {512, 300}, .final_block = 64})
  /// Errors: a negative length; more than max_axis_tokens in total.
  static block_layout from_sequence(const sequence_lengths& lengths) {
    constexpr const char* function = "block_layout::from_sequence";
    block_layout layout;
    layout.append_blocks(function, "context", lengths.context.values());
    const index_t final_block = lengths.final_block;
    detail::require(final_block >= 0, function, ": final_block is ", final_block,
                    ", must not be negative");
    layout.append_block(function, final_block, final_block);
    layout.close_sequence(true);
    return layout;
  }

  /// One sequence of blocks with these lengths, none of them final (see with_final_block).
  /// Errors: a negative length; more than max_axis_tokens in total.
  static block_layout from_lengths(const index_list& lengths) {
    block_layout layout;
    layout.append_blocks("block_layout::from_lengths", "lengths", lengths.values());
    layout.close_sequence(false);
    return layout;
  }

  /// One sequence of n blocks from n + 1 non-decreasing offsets, none of them final: block b is
  /// [offsets[b], offsets[b + 1]). Errors: no offsets; a first one that is not 0; a decreasing one.
  static block_layout from_offsets(const index_list& list) {
    const std::vector<index_t>& offsets = list.values();
    detail::require(!offsets.empty(),
                    "block_layout::from_offsets: offsets is empty, n blocks need n + 1 offsets");
    detail::require(offsets[0] == 0, "block_layout::from_offsets: offsets[0] is ", offsets[0],
                    ", must be 0");
    block_layout layout;
    for (std::size_t b = 1; b < offsets.size(); ++b) {
      detail::require(offsets[b - 1] <= offsets[b], "block_layout::from_offsets: offsets[", b,
                      "] is ", offsets[b], ", less than offsets[", b - 1, "] which is ",
                      offsets[b - 1]);
      const index_t length = offsets[b] - offsets[b - 1];
      layout.append_block("block_layout::from_offsets", length, length);
    }
    layout.close_sequence(false);
    return layout;
  }

  index_t tokens() const noexcept { return offsets_.back(); }
  index_t blocks() const noexcept { return static_cast<index_t>(offsets_.size()) - 1; }
  index_t sequences() const noexcept { return static_cast<index_t>(sequence_begin_.size()) - 1; }

  /// The tokens of a block, sinks included.
  index_range block(index_t block) const { return range_of("block", offsets_, "block", block); }

  /// The block numbers of a sequence.
  index_range sequence_blocks(index_t sequence) const {
    return range_of("sequence_blocks", sequence_begin_, "sequence", sequence);
  }

  /// The tokens of a sequence, sinks included.
  index_range sequence_tokens(index_t sequence) const {
    const index_range blocks = sequence_blocks(sequence);
    return {at(offsets_, blocks.begin), at(offsets_, blocks.end)};
  }

  /// True when the last block of a sequence was declared final.
  bool has_final_block(index_t sequence) const {
    static_cast<void>(sequence_blocks(sequence));  // refuses what is no sequence
    return has_final_[static_cast<std::size_t>(sequence)];
  }

  /// The last block of a sequence, which must have a final one.
  index_t final_block(index_t sequence) const;

  /// O(log sequences).
  index_t sequence_of_block(index_t block) const {
    return find("sequence_of_block", sequence_begin_, "block", block);
  }

  /// True for the final block of its sequence. O(log sequences).
  bool is_final(index_t block) const {
    const index_t sequence = sequence_of_block(block);
    return has_final_block(sequence) && block == at(sequence_begin_, sequence + 1) - 1;
  }

  /// The (non-empty) block that holds a token. O(log blocks).
  index_t block_of(index_t token) const { return find("block_of", offsets_, "token", token); }

  /// The sequence that holds a token. O(log blocks + log sequences).
  index_t sequence_of(index_t token) const { return sequence_of_block(block_of(token)); }

  bool has_sinks() const noexcept { return sinks_.tokens_per_block > 0; }

  /// What `with_sink_tokens` was given; tokens_per_block is 0 in a layout without sinks.
  const sink_token_options& sink_options() const noexcept { return sinks_; }

  /// The tokens before the insertion of sinks.
  index_t source_tokens() const noexcept { return source_offsets_.back(); }

  /// The source tokens of a block: a run of the source axis, empty for a shared sink block.
  index_range source_range(index_t block) const {
    return range_of("source_range", source_offsets_, "block", block);
  }

  /// The sink tokens that stand in a block; empty at its begin or end when it has none.
  index_range sink_tokens(index_t block) const {
    const index_range all = this->block(block);
    const index_t sinks = all.size() - source_range(block).size();
    return sinks_at_end() ? index_range{all.end - sinks, all.end}
                          : index_range{all.begin, all.begin + sinks};
  }

  /// The tokens of a block that are not sinks; source_range(block) in the same order.
  index_range content_tokens(index_t block) const {
    const index_range all = this->block(block);
    const index_t content = source_range(block).size();
    return sinks_at_end() ? index_range{all.begin, all.begin + content}
                          : index_range{all.end - content, all.end};
  }

  /// True for a block that is the shared sink set of its sequence. It is never the final block.
  bool is_shared_sink_block(index_t block) const {
    return sinks_.sharing == sink_sharing::shared && !sink_tokens(block).empty();
  }

  /// O(log blocks).
  bool is_sink(index_t token) const { return sink_tokens(block_of(token)).contains(token); }

  /// The source token that a token is; nothing for a sink. O(log blocks).
  std::optional<index_t> source_of(index_t token) const {
    const index_t block = block_of(token);
    const index_range content = content_tokens(block);
    if (!content.contains(token)) return std::nullopt;
    return source_range(block).begin + (token - content.begin);
  }

  /// The token that a source token became. O(log blocks).
  index_t token_of(index_t source) const {
    const index_t block = find("token_of", source_offsets_, "source", source);
    return content_tokens(block).begin + (source - source_range(block).begin);
  }

 private:
  friend block_layout pack_sequences(std::span<const block_layout> parts);
  friend block_layout with_final_block(block_layout layout);
  friend block_layout with_sink_tokens(const block_layout& layout,
                                       const sink_token_options& options);

  static index_t at(const std::vector<index_t>& values, index_t index) noexcept {
    return values[static_cast<std::size_t>(index)];
  }

  static index_range range_of(std::string_view function,
                              const std::vector<index_t>& offsets,
                              std::string_view argument,
                              index_t index) {
    const index_t count = static_cast<index_t>(offsets.size()) - 1;
    detail::require(0 <= index && index < count, "block_layout::", function, ": ", argument, " is ",
                    index, ", must be in [0, ", count, ")");
    return {at(offsets, index), at(offsets, index + 1)};
  }

  /// The non-empty range that holds a value: the last offset that is <= value begins it.
  static index_t find(std::string_view function,
                      const std::vector<index_t>& offsets,
                      std::string_view argument,
                      index_t value) {
    detail::require(0 <= value && value < offsets.back(), "block_layout::", function, ": ",
                    argument, " is ", value, ", must be in [0, ", offsets.back(), ")");
    return std::upper_bound(offsets.begin(), offsets.end(), value) - offsets.begin() - 1;
  }

  bool sinks_at_end() const noexcept { return sinks_.placement == sink_placement::block_end; }

  void append_block(std::string_view function, index_t tokens, index_t source_tokens) {
    detail::require(tokens <= max_axis_tokens - this->tokens(), function, ": block ", blocks(),
                    " ends after token ", max_axis_tokens, ", the longest axis");
    offsets_.push_back(this->tokens() + tokens);
    source_offsets_.push_back(this->source_tokens() + source_tokens);
  }
  void append_blocks(std::string_view function,
                     std::string_view argument,
                     const std::vector<index_t>& lengths) {
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      detail::require(lengths[b] >= 0, function, ": ", argument, "[", b, "] is ", lengths[b],
                      ", must not be negative");
      append_block(function, lengths[b], lengths[b]);
    }
  }
  void close_sequence(bool has_final) {
    sequence_begin_.push_back(blocks());
    has_final_.push_back(has_final);
  }

  std::vector<index_t> offsets_ = {0};         // (blocks + 1) first token of each block
  std::vector<index_t> source_offsets_ = {0};  // (blocks + 1) first source token of each block
  std::vector<index_t> sequence_begin_ = {0};  // (sequences + 1) first block of each sequence
  std::vector<bool> has_final_;                // (sequences) the last block is the final one
  sink_token_options sinks_ = {.tokens_per_block = 0};
};

namespace detail {

/// Refuses a sequence without a final block, for what needs to know which block sees all.
inline void require_final_block(std::string_view place,
                                const block_layout& layout,
                                index_t sequence) {
  require(layout.has_final_block(sequence), place, ": sequence ", sequence, " has ",
          layout.sequence_blocks(sequence).size(),
          " blocks and none of them is its final block; name it: "
          "block_layout::from_sequence({.context = ..., "
          ".final_block = ...}) or with_final_block(layout)");
}

}  // namespace detail

/// Declares the last block of every sequence its final block, which sees all earlier blocks:
///     with_final_block(block_layout::from_offsets(cu_seqlens))
/// A sequence without blocks stays without one. O(sequences).
inline block_layout with_final_block(block_layout layout) {
  for (index_t s = 0; s < layout.sequences(); ++s) {
    layout.has_final_[static_cast<std::size_t>(s)] = !layout.sequence_blocks(s).empty();
  }
  return layout;
}

inline index_t block_layout::final_block(index_t sequence) const {
  detail::require_final_block("block_layout::final_block", *this, sequence);
  return sequence_blocks(sequence).end - 1;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
