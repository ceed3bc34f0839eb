// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/attend_blocks.hpp>
#include <blockattn/kv/cached_block.hpp>
#include <utility>
#include <vector>

#include "masked_attention.hpp"

namespace rag {

/// Keys and values of one prompt as it grows: cached blocks that are read where they lie, then the
/// prompt's own tokens. A model carries new tokens, whose positions start at `position()`, through
/// its layers, calls `attend` once in each and then `advance`.
class cached_prompt {
 public:
  /// \param capacity  most tokens that the prompt itself (without cached blocks) will have
  cached_prompt(ba::index_t layers,
                ba::index_t kv_heads,
                ba::index_t head_dim,
                ba::index_t capacity)
      : kv_heads_(kv_heads),
        head_dim_(head_dim),
        capacity_(capacity),
        segments_(static_cast<std::size_t>(layers)),
        own_keys_(segments_.size(), rows(static_cast<std::size_t>(capacity * kv_heads * head_dim))),
        own_values_(own_keys_) {}

  ba::index_t position() const { return position_; }  ///< of the next token
  ba::index_t capacity() const { return capacity_; }  ///< for tokens of its own
  ba::index_t capacity_left() const { return capacity_ - own_tokens_; }

  /// Puts a cached block at the next positions and keeps it pinned. Its keys do not move and are
  /// not rotated again. All blocks come before the first token of the prompt's own.
  void append_block(ba::kv::cached_block block) {
    for (std::size_t layer = 0; layer < segments_.size(); ++layer) {
      segments_[layer].push_back(
          block.segment(static_cast<ba::index_t>(layer), static_cast<double>(position_)));
    }
    position_ += block.shape().tokens;
    blocks_.push_back(std::move(block));
  }

  /// Copies the new tokens' keys and values of a layer, at most capacity_left(), behind its own:
  /// for tokens whose attention is computed elsewhere, as by a masked_attention.
  void append_own(ba::index_t layer, const attention_inputs& in) {
    const auto behind = [&](std::vector<rows>& layers) {
      return ba::token_slice(own(layers, layer, own_tokens_ + in.k.tokens), own_tokens_,
                             in.k.tokens);
    };
    copy_rows(in.k, behind(own_keys_));
    copy_rows(in.v, behind(own_values_));
  }

  /// Appends the new tokens and computes their attention to every block, to every token before them
  /// and, causally, to one another.
  template <class Executor>
  void attend(ba::index_t layer,
              const attention_inputs& in,
              const ba::rope& rope,
              const Executor& workers) {
    append_own(layer, in);
    const ba::index_t keys = own_tokens_ + in.k.tokens;
    const ba::attend_sequence<float> sequence = {
        .queries = {0, in.q.tokens},
        .segments = segments_[static_cast<std::size_t>(layer)],
        .tail = {.k = own(own_keys_, layer, keys), .v = own(own_values_, layer, keys)}};
    const ba::attend_arguments<float> arguments = {
        .q = in.q, .o = in.o, .sequences = {&sequence, 1}};
    const auto job = ba::cpu::prepare_attend_blocks<float>(arguments, {.rope = &rope});
    ba::cpu::run_job("cached_prompt::attend", job, workers,
                     scratch_.of_size(job.workspace_size(workers.concurrency())));
  }

  /// Counts tokens that went through all layers.
  void advance(ba::index_t tokens) {
    own_tokens_ += tokens;
    position_ += tokens;
  }

 private:
  using rows = std::vector<float>;  // (capacity, kv_heads, head_dim)

  /// The first `tokens` rows of a layer of own_keys_ or own_values_.
  ba::heads_view<float> own(std::vector<rows>& layers,
                            ba::index_t layer,
                            ba::index_t tokens) const {
    return ba::token_major(layers[static_cast<std::size_t>(layer)].data(), tokens, kv_heads_,
                           head_dim_);
  }

  ba::index_t kv_heads_;
  ba::index_t head_dim_;
  ba::index_t capacity_;
  std::vector<ba::kv::cached_block> blocks_;                   // pins
  std::vector<std::vector<ba::key_segment<float>>> segments_;  // (layers) of (blocks)
  std::vector<rows> own_keys_;                                 // (layers)
  std::vector<rows> own_values_;                               // (layers)
  ba::index_t own_tokens_ = 0;
  ba::index_t position_ = 0;  // of the next token
  scratch_memory scratch_;
};

}  // namespace rag
