// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/workspace.hpp>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "support/random.hpp"

namespace blockattn_test {

/// How a (tokens, heads, head_dim) tensor lies in its buffer.
struct tensor_layout {
  bool head_major = false;  ///< (heads, tokens, head_dim) instead of (tokens, heads, head_dim)
  bool reversed = false;    ///< tokens run backwards: token_stride < 0
  index_t offset = 0;       ///< elements from an aligned address to the first row
  index_t row_gap = 0;      ///< elements between a row and the next one of the inner axis
  index_t outer_gap = 0;    ///< elements more from one step of the outer axis to the next
};

/// Any order of the axes, often misaligned by an element, often with gaps that no vector divides.
inline tensor_layout random_tensor_layout(random_source& random) {
  return {.head_major = random.chance(0.5),
          .reversed = random.chance(0.15),
          .offset = random.chance(0.5) ? 1 : random.integer(0, 9),
          .row_gap = random.chance(0.4) ? random.integer(1, 19) : 0,
          .outer_gap = random.chance(0.4) ? random.integer(1, 19) : 0};
}

/// Owns a tensor whose every byte is 0xff at first, which is NaN in all storage types: the rows and
/// all memory around and between them. A kernel that reads a margin computes NaN; one that writes
/// it is found out by `margins_untouched`; an output row that was never written still holds NaN.
template <class T>
class hostile_tensor {
 public:
  hostile_tensor(index_t tokens, index_t heads, index_t head_dim, const tensor_layout& layout)
      : tokens_(tokens), heads_(heads), head_dim_(head_dim) {
    const index_t row = head_dim + layout.row_gap;
    const index_t inner = layout.head_major ? tokens : heads;
    const index_t outer = layout.head_major ? heads : tokens;
    const index_t step = inner * row + layout.outer_gap;
    token_stride_ = layout.head_major ? row : step;
    head_stride_ = layout.head_major ? step : row;
    first_ = margin + layout.offset;
    if (layout.reversed && tokens > 0) {
      first_ += (tokens - 1) * token_stride_;
      token_stride_ = -token_stride_;
    }
    size_ = 2 * margin + layout.offset + outer * step;
    buffer_ = workspace_buffer(size_ * static_cast<index_t>(sizeof(T)));
    std::memset(buffer_.bytes().data(), 0xff, buffer_.bytes().size());
  }

  heads_view<T> view() const noexcept {
    return {data() + first_, tokens_, heads_, head_dim_, token_stride_, head_stride_};
  }
  /// For a tensor with head_dim 1.
  lse_view<T> as_lse() const noexcept {
    return {data() + first_, tokens_, heads_, token_stride_, head_stride_};
  }

  /// Fills the rows of the tokens that `is_used` accepts with normal values times `magnitude`; the
  /// others stay NaN. Numbers are drawn for all of them: the data of a token depends on no mask.
  template <class IsUsed>
  void fill_normal(random_source& random, double magnitude, const IsUsed& is_used) {
    for (index_t token = 0; token < tokens_; ++token) {
      for (index_t head = 0; head < heads_; ++head) {
        for (index_t t = 0; t < head_dim_; ++t) {
          const double value = magnitude * random.normal();
          if (is_used(token)) store_scalar(view().row(token, head)[t], value);
        }
      }
    }
  }

  /// True when every byte outside the rows is as the constructor left it.
  bool margins_untouched() const {
    std::vector<bool> in_row(static_cast<std::size_t>(size_), false);
    for (index_t token = 0; token < tokens_; ++token) {
      for (index_t head = 0; head < heads_; ++head) {
        const auto begin = in_row.begin() + (view().row(token, head) - data());
        std::fill(begin, begin + head_dim_, true);
      }
    }
    for (index_t i = 0; i < size_; ++i) {
      if (in_row[static_cast<std::size_t>(i)]) continue;
      for (std::size_t byte = 0; byte < sizeof(T); ++byte) {
        const auto at = static_cast<std::size_t>(i) * sizeof(T) + byte;
        if (buffer_.bytes()[at] != std::byte{0xff}) return false;
      }
    }
    return true;
  }

  /// True when the rows too hold nothing but the first fill.
  bool all_untouched() const {
    for (const std::byte byte : buffer_.bytes()) {
      if (byte != std::byte{0xff}) return false;
    }
    return true;
  }

  /// True when rows and margins have the bits of another tensor of the same shape and layout.
  bool same_bits(const hostile_tensor& other) const {
    return size_ == other.size_ && std::memcmp(buffer_.bytes().data(), other.buffer_.bytes().data(),
                                               buffer_.bytes().size()) == 0;
  }

 private:
  static constexpr index_t margin = 64;  // elements on both ends: more than two vectors of any type

  T* data() const noexcept { return reinterpret_cast<T*>(buffer_.bytes().data()); }

  index_t tokens_;
  index_t heads_;
  index_t head_dim_;
  index_t token_stride_ = 0;
  index_t head_stride_ = 0;
  index_t first_ = 0;
  index_t size_ = 0;
  workspace_buffer buffer_{0};
};

}  // namespace blockattn_test
