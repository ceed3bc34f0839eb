// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/simd.hpp>
#include <blockattn/core/storage.hpp>

namespace blockattn::inline BLOCKATTN_ABI::detail {

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

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
