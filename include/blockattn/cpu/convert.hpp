// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/simd_storage.hpp>
#include <blockattn/cpu/simd.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// out[i] = factor * in[i] for i < count. Where C does not hold the factor, its rest is
/// added: a rounded scale would move all scores, and with them every lse, to the same side.
template <class Arch, class T, class C>
inline void load_row(const T* in, index_t count, long double factor, C* out) noexcept {
  using v = vector<C, Arch>;
  constexpr index_t width = lanes<C, Arch>;
  const auto high = static_cast<C>(factor);
  const auto low = static_cast<C>(factor - static_cast<long double>(high));
  const auto scaled = [&](const v& x) {
    return low == 0 ? v(x * v(high)) : fmadd<C, Arch>(x, v(high), v(x * v(low)));
  };
  // A count that the compiler knows and `i + width <= count` make GCC 12 warn of the rest.
  const index_t whole = count / width * width;
  for (index_t i = 0; i < whole; i += width)
    scaled(load_values<C, Arch>(in + i)).store_unaligned(out + i);
  for (index_t i = whole; i < count; ++i)
    out[i] = scaled(v(static_cast<C>(load_scalar(in[i])))).get(0);
}

/// What happens to a value that stands where a result goes.
enum class accumulate_mode { assign, add };

/// out[i] (+)= factor * in[i], rounded once to the storage type, for i < count. Factor 0 stores 0
/// (adds nothing), also where `in` is not finite.
template <class Arch, class T, class C>
inline void store_row(const C* in,
                      index_t count,
                      C factor,
                      T* out,
                      accumulate_mode mode = accumulate_mode::assign) noexcept {
  if (mode == accumulate_mode::add) {
    if (factor == 0) return;
    for (index_t i = 0; i < count; ++i) {
      store_scalar(out[i], static_cast<C>(load_scalar(out[i])) + factor * in[i]);
    }
    return;
  }
  if (factor == 0) {
    for (index_t i = 0; i < count; ++i) store_scalar(out[i], C(0));
    return;
  }
  for (index_t i = 0; i < count; ++i) store_scalar(out[i], factor * in[i]);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail
