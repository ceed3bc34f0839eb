// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/range.hpp>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// The bytes that a view covers: rows of `width` bytes at every combination of two strides. Where
/// nothing is covered width is 0. Addresses are numbers: memory of a device has them too.
struct footprint {
  /// Equal rows at distances of `step` bytes.
  struct axis {
    index_t count = 1;
    index_t step = 0;
    friend constexpr bool operator==(const axis&, const axis&) = default;
  };

  index_t begin = 0;  ///< address of the lowest byte
  index_t width = 0;
  axis inner, outer;  ///< 0 <= inner.step <= outer.step; an axis that is not needed has {1, 0}

  index_t end() const noexcept {
    return begin + (inner.count - 1) * inner.step + (outer.count - 1) * outer.step + width;
  }

  /// Counts and strides as a view has them, in elements of `size` bytes; strides of any sign. The
  /// extent fits index_t (see check_view).
  static footprint of(const void* data,
                      index_t size,
                      index_t columns,
                      index_t tokens,
                      index_t token_stride,
                      index_t heads,
                      index_t head_stride) noexcept {
    footprint result;
    if (data == nullptr || columns <= 0 || tokens <= 0 || heads <= 0) return result;
    result.begin = reinterpret_cast<std::intptr_t>(data);
    result.width = columns * size;
    axis axes[2] = {};
    if (tokens > 1 && token_stride != 0) axes[0] = {tokens, token_stride * size};
    if (heads > 1 && head_stride != 0) axes[1] = {heads, head_stride * size};
    for (axis& one : axes) {
      if (one.step < 0) {
        result.begin += (one.count - 1) * one.step;
        one.step = -one.step;
      }
    }
    if (axes[0].step > axes[1].step) std::swap(axes[0], axes[1]);
    for (axis& one : axes) {  // rows that follow one another without a gap are one row
      if (one.count > 1 && one.step <= result.width) {
        result.width += (one.count - 1) * one.step;
        one = {};
      }
    }
    result.inner = axes[0];
    result.outer = axes[1];
    return result;
  }
};

template <class T>
footprint footprint_of(const heads_view<T>& view) noexcept {
  return footprint::of(view.data, sizeof(T), view.head_dim, view.tokens, view.token_stride,
                       view.heads, view.head_stride);
}

template <class T>
footprint footprint_of(const lse_view<T>& view) noexcept {
  return footprint::of(view.data, sizeof(T), 1, view.tokens, view.token_stride, view.heads,
                       view.head_stride);
}

template <class T>
footprint footprint_of(std::span<T> values) noexcept {
  return footprint::of(values.data(), sizeof(T), static_cast<index_t>(values.size()), 1, 0, 1, 0);
}

/// The first byte that a view covers and the one behind the last.
template <class T>
index_range byte_range_of(const heads_view<T>& view) noexcept {
  if (view.data == nullptr || view.tokens <= 0 || view.heads <= 0 || view.head_dim <= 0) return {};
  const index_t tokens = view.tokens > 1 ? (view.tokens - 1) * view.token_stride : 0;
  const index_t heads = view.heads > 1 ? (view.heads - 1) * view.head_stride : 0;
  const index_t origin = reinterpret_cast<std::intptr_t>(view.data);
  constexpr index_t size = sizeof(T);
  return {
      origin + (std::min<index_t>(tokens, 0) + std::min<index_t>(heads, 0)) * size,
      origin + (std::max<index_t>(tokens, 0) + std::max<index_t>(heads, 0) + view.head_dim) * size};
}

/// Whether rows of `width_a` bytes at a + i * step, i in [0, count_a), meet rows of `width_b` bytes
/// at a + distance + j * step, j in [0, count_b).
constexpr bool combs_meet(index_t width_a,
                          index_t count_a,
                          index_t width_b,
                          index_t count_b,
                          index_t step,
                          index_t distance) noexcept {
  // They meet when some i - j = m has distance - width_a < m * step < distance + width_b.
  if (step == 0) return distance < width_a && -distance < width_b;
  const auto floor_divide = [](index_t value, index_t divisor) {
    return value / divisor - (value % divisor < 0 ? 1 : 0);
  };
  const index_t least = std::max(floor_divide(distance - width_a, step) + 1, 1 - count_b);
  const index_t most = std::min(floor_divide(distance + width_b - 1, step), count_a - 1);
  return least <= most;
}

/// Turns the axes of two footprints so that `outer` has the same step in both, the longer axis where
/// there is a choice. False where no step is common.
inline bool align_axes(footprint& a, footprint& b) noexcept {
  const auto is_run = [](const footprint& f) { return f.inner.count == 1 && f.outer.count == 1; };
  const auto turn = [](footprint& f) { std::swap(f.inner, f.outer); };
  if (is_run(a) || is_run(b)) {
    footprint& run = is_run(a) ? a : b;
    footprint& other = is_run(a) ? b : a;
    if (other.inner.count > other.outer.count) turn(other);
    run.outer.step = other.outer.step;
    return true;
  }
  if (a.outer.step == b.outer.step) {
    if (a.inner.step == b.inner.step && a.inner.count > a.outer.count) {
      turn(a);
      turn(b);
    }
    return true;
  }
  // Steps of 0 belong to axes that are not there.
  if (a.inner.step == b.inner.step && a.inner.step != 0) {
    turn(a);
    turn(b);
    return true;
  }
  if (a.inner.step == b.outer.step) {
    turn(a);
    return true;
  }
  if (b.inner.step == a.outer.step) {
    turn(b);
    return true;
  }
  return false;
}

/// Whether two footprints share a byte. Exact where both leave gaps between rows at a common stride,
/// and where one of them is a single run of bytes; views that differ in every stride count as
/// overlapping when their extents do, as do more than 2^20 rows that are interleaved along both
/// axes. O(1) but for those: O(heads).
inline bool overlap(footprint a, footprint b) noexcept {
  if (a.width == 0 || b.width == 0 || a.end() <= b.begin || b.end() <= a.begin) return false;
  if (!align_axes(a, b)) return true;
  const auto meet = [&](index_t distance) {
    return combs_meet(a.width, a.outer.count, b.width, b.outer.count, a.outer.step, distance);
  };
  // Records that lie beside one another are apart whatever is inside.
  const auto filled = [](const footprint& f) {
    return f.width + (f.inner.count - 1) * f.inner.step;
  };
  const index_t distance = b.begin - a.begin;
  if (!combs_meet(filled(a), a.outer.count, filled(b), b.outer.count, a.outer.step, distance))
    return false;
  constexpr index_t most = index_t{1} << 20;  // so that no size makes a check endless
  if (a.inner.count > most || b.inner.count > most) return true;
  if (a.inner.count == 1 || b.inner.count == 1 || a.inner.step == b.inner.step) {
    const index_t step = std::max(a.inner.step, b.inner.step);
    for (index_t m = 1 - a.inner.count; m < b.inner.count; ++m) {
      if (meet(distance + m * step)) return true;
    }
    return false;
  }
  if (a.inner.count > most / b.inner.count) return true;
  for (index_t i = 0; i < a.inner.count; ++i) {
    for (index_t j = 0; j < b.inner.count; ++j) {
      if (meet(distance + j * b.inner.step - i * a.inner.step)) return true;
    }
  }
  return false;
}

/// Whether two views are one: every element at the same address, of the same size.
template <class A, class B>
bool same_view(const heads_view<A>& a, const heads_view<B>& b) noexcept {
  return static_cast<const void*>(a.data) == b.data && sizeof(A) == sizeof(B) &&
         a.tokens == b.tokens && a.heads == b.heads && a.head_dim == b.head_dim &&
         (a.tokens <= 1 || a.token_stride == b.token_stride) &&
         (a.heads <= 1 || a.head_stride == b.head_stride);
}

template <class A, class B>
bool same_view(const lse_view<A>& a, const lse_view<B>& b) noexcept {
  return same_view(heads_view<A>{a.data, a.tokens, a.heads, 1, a.token_stride, a.head_stride},
                   heads_view<B>{b.data, b.tokens, b.heads, 1, b.token_stride, b.head_stride});
}

template <class A, class B>
bool same_view(std::span<A> a, std::span<B> b) noexcept {
  return static_cast<const void*>(a.data()) == b.data() && a.size_bytes() == b.size_bytes() &&
         sizeof(A) == sizeof(B);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
