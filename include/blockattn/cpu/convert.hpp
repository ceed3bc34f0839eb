// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/cpu/simd.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// `lanes` stored values as accumulators. Exact.
template <class C, class Arch, class T>
inline vector<C, Arch> load_values(const T* stored) noexcept {
  using v = vector<C, Arch>;
  if constexpr (std::is_same_v<T, C>) {
    return v::load_unaligned(stored);
  } else {
#if defined(__AVX512F__)
    if constexpr (is_avx512<Arch> && format_of<T> == storage_format::bf16) {
      const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored));
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
    if constexpr (is_avx512<Arch> && format_of<T> == storage_format::fp16) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
    }
#endif
    alignas(64) C values[lanes<C, Arch>];
    for (index_t i = 0; i < lanes<C, Arch>; ++i) values[i] = static_cast<C>(load_scalar(stored[i]));
    return v::load_aligned(values);
  }
}

/// out[i] = factor * in[i] for i < count.
template <class Arch, class T, class C>
inline void load_row(const T* in, index_t count, C factor, C* out) noexcept {
  using v = vector<C, Arch>;
  constexpr index_t width = lanes<C, Arch>;
  index_t i = 0;
  for (; i + width <= count; i += width)
    (load_values<C, Arch>(in + i) * v(factor)).store_unaligned(out + i);
  for (; i < count; ++i) out[i] = factor * static_cast<C>(load_scalar(in[i]));
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
