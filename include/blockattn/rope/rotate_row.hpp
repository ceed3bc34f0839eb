// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/rope/rope.hpp>
#include <concepts>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {

/// Pairs that are rotated through local arrays at a time: a compiler then vectorises without having
/// to prove that the tensors do not overlap, which they do when a row is rotated in place.
inline constexpr index_t rotation_chunk = 16;

/// Pairs [first, first + Count) of a row: (x, y) -> (x cos - y sin, y cos + x sin). x and y of pair
/// i are at step * i and at step * i + apart.
template <class Arch, index_t Count, index_t Step, class In, class Out, class C>
inline void rotate_pairs(const In* in,
                         Out* out,
                         index_t first,
                         index_t apart,
                         const C* cosines,
                         const C* sines) noexcept {
  C x[std::size_t{Count}];
  C y[std::size_t{Count}];
  for (index_t i = 0; i < Count; ++i) {
    const C a = static_cast<C>(load_scalar(in[Step * (first + i)]));
    const C b = static_cast<C>(load_scalar(in[Step * (first + i) + apart]));
    x[i] = a * cosines[first + i] - b * sines[first + i];
    y[i] = b * cosines[first + i] + a * sines[first + i];
  }
  for (index_t i = 0; i < Count; ++i) {
    store_scalar(out[Step * (first + i)], x[i]);
    store_scalar(out[Step * (first + i) + apart], y[i]);
  }
}

template <class Arch, index_t Step, class In, class Out, class C>
inline void rotate_all_pairs(const In* in,
                             Out* out,
                             index_t pairs,
                             index_t apart,
                             const C* cosines,
                             const C* sines) noexcept {
  index_t i = 0;
  for (; i + rotation_chunk <= pairs; i += rotation_chunk) {
    rotate_pairs<Arch, rotation_chunk, Step>(in, out, i, apart, cosines, sines);
  }
  for (; i < pairs; ++i) rotate_pairs<Arch, 1, Step>(in, out, i, apart, cosines, sines);
}

}  // namespace detail

/// Rotates one row of head_dim values by angles that `rotation.angles` gave; values from rotary_dim
/// on are copied. `in` and `out` are the same row or do not overlap. Arithmetic in C, one rounding
/// to Out. Checks nothing: the inner step of `rotate` and of kernels, which pass their own Arch.
template <class Arch = void, storage_scalar In, storage_scalar Out, std::floating_point C>
void rotate_row(
    const rope& rotation, const In* in, Out* out, const C* cosines, const C* sines) noexcept {
  const index_t pairs = rotation.pairs();
  if (rotation.pairing() == rope_pairing::half_split) {
    detail::rotate_all_pairs<Arch, 1>(in, out, pairs, pairs, cosines, sines);
  } else {
    detail::rotate_all_pairs<Arch, 2>(in, out, pairs, index_t{1}, cosines, sines);
  }
  if constexpr (std::is_same_v<In, Out>) {
    if (in == out) return;
  }
  for (index_t t = rotation.rotary_dim(); t < rotation.head_dim(); ++t) {
    store_scalar(out[t], static_cast<C>(load_scalar(in[t])));
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI
