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

/// Stores `lanes` accumulators, each rounded once to the storage type: what store_scalar stores (of
/// NaN, some NaN).
template <class C, class Arch, class T>
inline void store_values(const vector<C, Arch>& values, T* stored) noexcept {
  if constexpr (std::is_same_v<T, C>) {
    values.store_unaligned(stored);
  } else {
#if defined(__AVX512F__)
    if constexpr (is_avx512<Arch> && format_of<T> == storage_format::bf16) {
      // Not vcvtneps2bf16, which flushes subnormal numbers.
      const __m512i bits = _mm512_castps_si512(values);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
      const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
      rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(stored),
                          _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
      return;
    }
    if constexpr (is_avx512<Arch> && format_of<T> == storage_format::fp16) {
#pragma GCC diagnostic push  // without optimisation GCC's intrinsic is a macro that warns here
#pragma GCC diagnostic ignored "-Wsign-conversion"
      const __m256i narrow = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#pragma GCC diagnostic pop
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(stored), narrow);
      return;
    }
#endif
    alignas(64) C lane[lanes<C, Arch>];
    values.store_aligned(lane);
    for (index_t i = 0; i < lanes<C, Arch>; ++i) store_scalar(stored[i], lane[i]);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
