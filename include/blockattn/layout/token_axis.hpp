// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>
#include <string_view>

namespace blockattn::inline BLOCKATTN_ABI {

/// The longest token axis. Two of them make at most 2^62 pairs, so every pair count and every
/// key - query fits index_t.
inline constexpr index_t max_axis_tokens = index_t{1} << 31;

namespace detail {

/// Refuses a token count outside [0, max_axis_tokens] by the name of its function and argument.
inline void require_axis(std::string_view function, std::string_view argument, index_t tokens) {
  require(0 <= tokens && tokens <= max_axis_tokens, function, ": ", argument, " is ", tokens,
          ", must be in [0, ", max_axis_tokens, "]");
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
