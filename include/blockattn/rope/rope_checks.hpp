// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/overlap_checks.hpp>
#include <blockattn/core/view_checks.hpp>
#include <blockattn/rope/rope.hpp>
#include <cmath>
#include <span>

/// \file
/// What rotate, rotate_backward and reposition refuse. `function` is the public name in the text.

namespace blockattn::inline BLOCKATTN_ABI::detail {

template <class In, class Out>
void check_rope_rows(const char* function,
                     const rope& rotation,
                     const heads_view<In>& in,
                     const heads_view<Out>& out,
                     const char* in_name = "in",
                     const char* out_name = "out") {
  check_view(function, in_name, in);
  check_output_view(function, out_name, out);
  require(in.tokens == out.tokens && in.heads == out.heads && in.head_dim == out.head_dim, function,
          ": ", in_name, " is (", in.tokens, ", ", in.heads, ", ", in.head_dim, ") but ", out_name,
          " is (", out.tokens, ", ", out.heads, ", ", out.head_dim, ")");
  require(in.head_dim == rotation.head_dim(), function, ": rows have head_dim ", in.head_dim,
          " but the rope was made for ", rotation.head_dim());
  check_same_or_apart(function, out_name, out, in_name, in);
}

inline void check_rope_position(const char* function,
                                const char* name,
                                index_t index,
                                double position) {
  require(std::isfinite(position) && std::abs(position) <= max_rope_position, function, ": ", name,
          "[", index, "] is ", position, ", must be finite and at most 2^52 in magnitude");
}

/// One position for each token of `out`, apart from its memory.
template <class Out>
void check_rope_position_span(const char* function,
                              const char* name,
                              std::span<const double> positions,
                              const heads_view<Out>& out,
                              const char* out_name = "out") {
  require(static_cast<index_t>(positions.size()) == out.tokens, function, ": ", positions.size(),
          " ", name, " for ", out.tokens, " tokens");
  check_apart(function, {out_name, footprint_of(out)}, {name, footprint_of(positions)});
}

template <class Out>
void check_rope_positions(const char* function,
                          const char* name,
                          std::span<const double> positions,
                          const heads_view<Out>& out,
                          const char* out_name = "out") {
  check_rope_position_span(function, name, positions, out, out_name);
  for (index_t t = 0; t < out.tokens; ++t) {
    check_rope_position(function, name, t, positions[static_cast<std::size_t>(t)]);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
