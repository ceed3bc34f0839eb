// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/rope/rope_checks.hpp>
#include <blockattn/rope/rotate_row.hpp>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {

/// out = factor * U_p in for every head of every token, p = position_of(token); angles are computed
/// once per token.
template <class In, class Out, class PositionOf>
void rotate_tokens(const rope& rotation,
                   const heads_view<In>& in,
                   const heads_view<Out>& out,
                   double factor,
                   const PositionOf& position_of) noexcept {
  using C = accumulator_t<In, Out>;
  C cosines[max_rotary_dim / 2];
  C sines[max_rotary_dim / 2];
  for (index_t token = 0; token < in.tokens; ++token) {
    rotation.angles(position_of(token), cosines, sines, factor);
    for (index_t head = 0; head < in.heads; ++head) {
      rotate_row(rotation, in.row(token, head), out.row(token, head), cosines, sines);
    }
  }
}

}  // namespace detail

/// out[t] = R_p in[t] with p = positions[t] and R = m * U (see rope), for every head. Arithmetic in
/// fp32 (fp64 for double), angles in fp64, one rounding to the storage of `out`. No allocation,
/// O(tokens * (rotary_dim + heads * head_dim)).
///
/// \param in         (tokens, heads, head_dim)
/// \param out        (tokens, heads, head_dim), written; the same rows as `in` or no overlap
/// \param positions  (tokens), any order, may repeat, be negative or fractional;
///                   |position| <= max_rope_position
/// Errors: shapes or head_dim that disagree; a position that is not finite or too large.
template <storage_scalar In, storage_scalar Out>
void rotate(const rope& rotation,
            const heads_view<In>& in,
            const heads_view<Out>& out,
            std::span<const double> positions) {
  detail::check_rope_rows("rotate", rotation, in, out);
  detail::check_rope_positions("rotate", "positions", positions, out);
  detail::rotate_tokens(rotation, in, out, rotation.attention_factor(),
                        [&](index_t token) { return positions[static_cast<std::size_t>(token)]; });
}

/// rotate in place.
template <storage_scalar T>
void rotate(const rope& rotation, const heads_view<T>& rows, std::span<const double> positions) {
  rotate(rotation, rows, rows, positions);
}

}  // namespace blockattn::inline BLOCKATTN_ABI
