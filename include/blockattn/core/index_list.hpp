// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>
#include <concepts>
#include <initializer_list>
#include <ranges>
#include <type_traits>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// Lengths or offsets as callers have them: a braced list, a vector<int>, an array, a span. Copied,
/// so that it holds nothing of the caller's. Errors: a value beyond 64 signed bits.
class index_list {
 public:
  index_list() = default;
  index_list(std::initializer_list<index_t> values) : values_(values) {}
  template <std::integral Integer>
  index_list(std::initializer_list<Integer> values) {
    assign(values);
  }
  template <std::ranges::input_range Range>
  requires(std::integral<std::ranges::range_value_t<Range>> &&
           !std::same_as<std::remove_cvref_t<Range>, index_list>) index_list(Range&& values) {
    assign(values);
  }

  const std::vector<index_t>& values() const noexcept { return values_; }

 private:
  template <class Values>
  void assign(Values&& values) {
    for (const auto value : values) {
      detail::require(std::in_range<index_t>(value), "index_list: element ", values_.size(), " is ",
                      value, ", beyond 64 signed bits");
      values_.emplace_back(value);
    }
  }

  std::vector<index_t> values_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI
