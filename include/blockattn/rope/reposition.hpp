// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/rope/rotate.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Moves rows that were rotated for position p to p + delta: rows[t] = U_delta rows[t], in place,
/// for every head. The magnitude m is in the rows already and is not applied again. For engines
/// that want one contiguous cache; key_segment::query_shift does the same without writing. In exact
/// arithmetic equal to rotate at p + delta; here the stored rows are rounded twice. Inverse and
/// adjoint are both reposition by -delta, as U is orthogonal.
///
/// \param rows   (tokens, heads, head_dim), read and written
/// \param delta  any sign, may be fractional; |delta| <= max_rope_position
/// Errors: head_dim other than rotation.head_dim(); delta not finite or too large. No allocation.
template <storage_scalar T>
void reposition(const rope& rotation, const heads_view<T>& rows, double delta) {
  detail::check_rope_rows("reposition", rotation, rows, rows);
  detail::check_rope_position("reposition", "delta", 0, delta);
  using C = accumulator_t<T>;
  C cosines[max_rotary_dim / 2];
  C sines[max_rotary_dim / 2];
  rotation.angles(delta, cosines, sines);
  for (index_t token = 0; token < rows.tokens; ++token) {
    for (index_t head = 0; head < rows.heads; ++head) {
      T* row = rows.row(token, head);
      rotate_row(rotation, row, row, cosines, sines);
    }
  }
}

/// reposition with one delta for each token: rows[t] = U_(deltas[t]) rows[t].
/// \param deltas  (tokens)
template <storage_scalar T>
void reposition(const rope& rotation, const heads_view<T>& rows, std::span<const double> deltas) {
  detail::check_rope_rows("reposition", rotation, rows, rows);
  detail::check_rope_positions("reposition", "deltas", deltas, rows, "rows");
  detail::rotate_tokens(rotation, rows, rows, 1,
                        [&](index_t token) { return deltas[static_cast<std::size_t>(token)]; });
}

}  // namespace blockattn::inline BLOCKATTN_ABI
