// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/rope/rotate.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// The adjoint of rotate: d_in[t] = R_p^T d_out[t] with p = positions[t], where R_p^T = m * U_(-p)
/// on the rotary values and 1 on the others. It is not the inverse when the attention factor m is
/// not 1. So the gradient of a key that was cached unrotated is that of the rotated key, turned
/// back. Arithmetic, rounding and cost of rotate. Gradients are written.
///
/// The adjoint of reposition by delta needs no function of its own: it is reposition by -delta.
///
/// \param d_out      (tokens, heads, head_dim) gradient of the rotated rows
/// \param d_in       (tokens, heads, head_dim), written; the same rows as `d_out` or no overlap
/// \param positions  (tokens) as rotate had them
/// Errors: those of rotate.
template <storage_scalar DOut, storage_scalar DIn>
void rotate_backward(const rope& rotation,
                     const heads_view<DOut>& d_out,
                     const heads_view<DIn>& d_in,
                     std::span<const double> positions) {
  detail::check_rope_rows("rotate_backward", rotation, d_out, d_in, "d_out", "d_in");
  detail::check_rope_positions("rotate_backward", "positions", positions, d_in, "d_in");
  detail::rotate_tokens(rotation, d_out, d_in, rotation.attention_factor(),
                        [&](index_t token) { return -positions[static_cast<std::size_t>(token)]; });
}

/// rotate_backward in place.
template <storage_scalar T>
void rotate_backward(const rope& rotation,
                     const heads_view<T>& rows,
                     std::span<const double> positions) {
  rotate_backward(rotation, rows, rows, positions);
}

}  // namespace blockattn::inline BLOCKATTN_ABI
