// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace block_attention {

namespace ba = blockattn;

/// A mask, the layout that it was made from, and what was made from it: tile plans, and their
/// copies on devices, each once. Calls on one mask may come from several threads.
class block_mask {
 public:
  block_mask(ba::attention_mask mask,
             ba::block_layout layout,
             std::vector<std::uint8_t> loss_tokens = {})
      : mask_(std::move(mask)), layout_(std::move(layout)), loss_tokens_(std::move(loss_tokens)) {}

  const ba::attention_mask& mask() const noexcept { return mask_; }
  const ba::block_layout& layout() const noexcept { return layout_; }
  /// (tokens) 1 where a row may carry loss; empty unless drawn by block dropout.
  const std::vector<std::uint8_t>& loss_tokens() const noexcept { return loss_tokens_; }

  /// What `make()` gave when this key was first asked for. A key always stands for one type.
  template <class Value, class Make>
  std::shared_ptr<const Value> once(const std::vector<ba::index_t>& key, const Make& make) const {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const void>& made = made_[key];
    if (!made) made = std::make_shared<const Value>(make());
    return std::static_pointer_cast<const Value>(made);
  }

 private:
  ba::attention_mask mask_;
  ba::block_layout layout_;
  std::vector<std::uint8_t> loss_tokens_;
  mutable std::mutex mutex_;
  mutable std::map<std::vector<ba::index_t>, std::shared_ptr<const void>> made_;
};

}  // namespace block_attention
