// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/core/range.hpp>
#include <span>
#include <string_view>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// A maximal run of consecutive token indices of a gathered axis: tokens [tokens.begin, tokens.end)
/// have the ranks rank, rank + 1, ...
struct gathered_run {
  index_range tokens;
  index_t rank = 0;
};

/// Tokens picked from an axis in increasing order; the rank of a token is its place among them.
class gathered_axis {
 public:
  /// All tokens of an axis.
  explicit gathered_axis(index_t tokens) : size_(tokens) {
    if (tokens > 0) runs_.push_back({{0, tokens}, 0});
  }

  /// Errors: indices that do not increase strictly or leave [0, tokens).
  gathered_axis(std::string_view function,
                std::string_view argument,
                std::span<const index_t> indices,
                index_t tokens)
      : size_(static_cast<index_t>(indices.size())) {
    for (std::size_t r = 0; r < indices.size(); ++r) {
      const index_t token = indices[r];
      require(0 <= token && token < tokens, function, ": ", argument, "[", r, "] is ", token,
              ", must be in [0, ", tokens, ")");
      require(r == 0 || indices[r - 1] < token, function, ": ", argument, "[", r, "] is ", token,
              ", must be greater than ", argument, "[", r - 1, "] which is ",
              indices[r == 0 ? 0 : r - 1]);
      if (!runs_.empty() && runs_.back().tokens.end == token) {
        ++runs_.back().tokens.end;
      } else {
        runs_.push_back({{token, token + 1}, static_cast<index_t>(r)});
      }
    }
  }

  index_t size() const noexcept { return size_; }

  /// The runs that have a token in a range. O(log runs).
  std::span<const gathered_run> runs_in(const index_range& tokens) const noexcept {
    if (tokens.empty()) return {};
    const auto begin = std::partition_point(
        runs_.begin(), runs_.end(),
        [&](const gathered_run& run) { return run.tokens.end <= tokens.begin; });
    const auto end = std::partition_point(
        begin, runs_.end(), [&](const gathered_run& run) { return run.tokens.begin < tokens.end; });
    return {begin, end};
  }

  /// The ranks of the picked tokens in a range. O(log runs).
  index_range ranks_in(const index_range& tokens) const noexcept {
    const std::span<const gathered_run> runs = runs_in(tokens);
    if (runs.empty()) return {};
    const gathered_run& first = runs.front();
    const gathered_run& last = runs.back();
    return {first.rank + std::max<index_t>(tokens.begin - first.tokens.begin, 0),
            last.rank + std::min(tokens.end, last.tokens.end) - last.tokens.begin};
  }

  /// The smallest range that holds the picked tokens in a range. O(log runs).
  index_range hull_in(const index_range& tokens) const noexcept {
    const std::span<const gathered_run> runs = runs_in(tokens);
    if (runs.empty()) return {};
    return intersect(tokens, {runs.front().tokens.begin, runs.back().tokens.end});
  }

 private:
  index_t size_ = 0;
  std::vector<gathered_run> runs_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
