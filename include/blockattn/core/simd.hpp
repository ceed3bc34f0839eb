// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <cstdint>
#include <numbers>
#include <type_traits>

// GCC 12 warns of the undefined registers inside its own AVX-512 intrinsics (GCC bug 105593),
// wherever they are inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// fp32 forward, causal, 1,024 tokens, head_dim 128, one core of a Zen 4: 84 GFLOP/s with -O2
// -march=native, 82 with -march=x86-64-v3, 22 for plain x86-64, 0.3 with -O0.
#if defined(__GNUC__) && !defined(__CUDACC__) && !defined(BLOCKATTN_ACCEPT_SLOW_BUILD)
#if !defined(__OPTIMIZE__)
#pragma message(                                                                       \
    "blockattn is compiled without optimisation, some 200 times slower than with -O2 " \
    "(BLOCKATTN_ACCEPT_SLOW_BUILD silences this)")
#elif defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__))
#pragma message(                                                                                  \
    "blockattn is compiled without AVX2 and FMA, some 4 times slower than with -march=native or " \
    "-march=x86-64-v3 (BLOCKATTN_ACCEPT_SLOW_BUILD silences this)")
#endif
#endif

/// \file
/// What the kernels need beyond xsimd 8.1, written so that current xsimd (reduce_add, reduce_max)
/// compiles too. Every function carries the arch in its type, so translation units built for
/// different machines never share a symbol. Calls of reduce_add and reduce_max name their
/// namespace: current xsimd has functions of the same names, which argument-dependent lookup would
/// find.

namespace blockattn::inline BLOCKATTN_ABI {

/// The best instruction set that the translation unit is compiled for.
using default_arch = xsimd::default_arch;

namespace detail {

template <class C, class Arch>
using vector = xsimd::batch<C, Arch>;

template <class C, class Arch>
inline constexpr index_t lanes = static_cast<index_t>(xsimd::batch<C, Arch>::size);

template <class Arch>
inline constexpr bool is_avx512 = std::is_base_of_v<xsimd::avx512f, Arch>;

/// Whether fmadd rounds once.
template <class Arch>
inline constexpr bool has_fma = is_avx512<Arch> || std::is_base_of_v<xsimd::neon64, Arch>;
template <class Arch>
inline constexpr bool has_fma<xsimd::fma3<Arch>> = true;

/// a * b + c, rounded once where the machine can. xsimd 8.1 has no fused form for AVX-512 and
/// leaves it to the compiler, which clang 14 does not do: 5 to 9 % of the micro-kernel.
template <class C, class Arch>
inline vector<C, Arch> fmadd(const vector<C, Arch>& a,
                             const vector<C, Arch>& b,
                             const vector<C, Arch>& c) noexcept {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Arch> && std::is_same_v<C, float>) return _mm512_fmadd_ps(a, b, c);
  if constexpr (is_avx512<Arch> && std::is_same_v<C, double>) return _mm512_fmadd_pd(a, b, c);
#endif
  return xsimd::fma(a, b, c);
}

template <class C, class Arch>
inline C reduce_add(const vector<C, Arch>& x) noexcept {
#if XSIMD_VERSION_MAJOR >= 10
  return xsimd::reduce_add(x);
#else
  return xsimd::hadd(x);
#endif
}

template <class C, class Arch>
inline C reduce_max(const vector<C, Arch>& x) noexcept {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Arch> && std::is_same_v<C, float>) return _mm512_reduce_max_ps(x);
  if constexpr (is_avx512<Arch> && std::is_same_v<C, double>) return _mm512_reduce_max_pd(x);
#endif
#if XSIMD_VERSION_MAJOR >= 10
  return xsimd::reduce_max(x);
#else
  alignas(64) C values[lanes<C, Arch>];
  x.store_aligned(values);
  C largest = values[0];
  for (index_t i = 1; i < lanes<C, Arch>; ++i) largest = values[i] > largest ? values[i] : largest;
  return largest;
#endif
}

/// totals[i] = sum of the lanes of x[i] for i < Count.
template <int Count, class C, class Arch>
inline void reduce_add_each(const vector<C, Arch>* x, C* totals) noexcept {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Arch> && std::is_same_v<C, float> && Count == 16) {
    // A tree over all 16 at once: 45 operations, not 16 reductions of 9. (haddp of xsimd 8.1 adds
    // wrong lanes here.)
    __m512 quarter[4];  // lane 4 b + i: what 128-bit block b of x[4 g + i] adds up to
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512 a = x[4 * g], b = x[4 * g + 1], c = x[4 * g + 2], d = x[4 * g + 3];
      const __m512d ab =
          _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
      const __m512d cd =
          _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
      quarter[g] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x44),
                                     _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xee));
    const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x44),
                                      _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xee));
    _mm512_storeu_ps(totals, _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                                           _mm512_shuffle_f32x4(low, high, 0xdd)));
    return;
  }
#endif
  for (int i = 0; i < Count; ++i) totals[i] = detail::reduce_add<C, Arch>(x[i]);
}

/// 2^f on [-1/2, 1/2]. fp32: degree 6 with p(0) = 1, minimax over coefficients that are floats (the
/// linear one is ln 2 rounded): relative error 4.6e-9, so that rounding dominates (degree 5 leaves
/// 4.3e-7; the real minimax polynomial with its coefficients rounded 2.1e-8, which shows as a
/// bias).
template <class Arch>
inline vector<float, Arch> exp2_fraction(const vector<float, Arch>& f) noexcept {
  using v = vector<float, Arch>;
  v p = fmadd<float, Arch>(v(1.56477705e-4F), f, v(1.33976538e-3F));
  p = fmadd<float, Arch>(p, f, v(9.61761642e-3F));
  p = fmadd<float, Arch>(p, f, v(5.55034652e-2F));
  p = fmadd<float, Arch>(p, f, v(2.40226522e-1F));
  p = fmadd<float, Arch>(p, f, v(6.93147182e-1F));
  return fmadd<float, Arch>(p, f, v(1.0F));
}

/// e^f on [-ln 2 / 2, ln 2 / 2]. fp32: degree 6 that begins with 1 + f, minimax over coefficients
/// that are floats: relative error 3.1e-9. fp64: Taylor series of degree 13, relative error 4e-18.
template <class Arch>
inline vector<float, Arch> exp_fraction(const vector<float, Arch>& f) noexcept {
  using v = vector<float, Arch>;
  v p = fmadd<float, Arch>(v(1.38209655e-3F), f, v(8.36867187e-3F));
  p = fmadd<float, Arch>(p, f, v(4.16682623e-2F));
  p = fmadd<float, Arch>(p, f, v(1.66665211e-1F));
  p = fmadd<float, Arch>(p, f, v(4.9999994e-1F));
  p = fmadd<float, Arch>(p, f, v(1.0F));
  return fmadd<float, Arch>(p, f, v(1.0F));
}

template <class Arch>
inline vector<double, Arch> exp_fraction(const vector<double, Arch>& f) noexcept {
  using v = vector<double, Arch>;
  v p(1.0 / 6227020800.0);  // 1 / 13!
  for (const double coefficient :
       {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
        1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0}) {
    p = fmadd<double, Arch>(p, f, v(coefficient));
  }
  return p;
}

template <class Arch>
inline vector<double, Arch> exp2_fraction(const vector<double, Arch>& f) noexcept {
  return exp_fraction<Arch>(vector<double, Arch>(f * vector<double, Arch>(std::numbers::ln2)));
}

/// How a power is taken apart: base^x = 2^whole * fraction(rest(x, whole)), whole = exponent(x)
/// rounded. Powers of less than `smallest` are not normal numbers.
template <class C, class Arch>
struct base_2 {
  using v = vector<C, Arch>;
  static constexpr C smallest = std::is_same_v<C, float> ? C(-126) : C(-1022);
  static v exponent(const v& x) noexcept { return x; }
  static v rest(const v& x, const v& whole) noexcept { return x - whole; }
  static v fraction(const v& rest) noexcept { return exp2_fraction<Arch>(rest); }
};

/// The exponent only chooses `whole`: its rounding is not seen. (2^(x log2(e)) would be off to one
/// side by 1.3e-8 of x, because log2(e) is rounded.)
template <class C, class Arch>
struct base_e {
  using v = vector<C, Arch>;
  static constexpr bool single = std::is_same_v<C, float>;
  /// -126 ln 2 and -1022 ln 2, rounded towards 0.
  static constexpr C smallest = single ? C(-87.33654F) : C(-708.3964185322641);

  static v exponent(const v& x) noexcept { return x * v(std::numbers::log2e_v<C>); }
  static v rest(const v& x, const v& whole) noexcept {
    // A rounded ln 2 costs fp32 1.9e-9 of `whole`, 1/30 of a unit in the last place.
    if constexpr (single && has_fma<Arch>) {
      return fmadd<C, Arch>(whole, v(-std::numbers::ln2_v<C>), x);
    }
    // ln 2 in two parts. Without FMA the first has so few digits that its products are exact.
    constexpr C first = has_fma<Arch> ? std::numbers::ln2_v<C>
                        : single      ? C(0.693359375)
                                      : C(0x1.62e42feep-1);
    constexpr C second = single          ? C(-2.1219444005469058e-4)
                         : has_fma<Arch> ? C(2.3190468138462996e-17)
                                         : C(1.9082149292705878e-10);
    return fmadd<C, Arch>(whole, v(-second), fmadd<C, Arch>(whole, v(-first), x));
  }
  static v fraction(const v& rest) noexcept { return exp_fraction<Arch>(rest); }
};

/// base^x for x <= 0, exactly 0 for x below Base::smallest, -inf included: a hidden pair weighs
/// nothing. NaN stays NaN.
template <class Base, class C, class Arch>
inline vector<C, Arch> power_nonpositive(const vector<C, Arch>& x) noexcept {
  using v = vector<C, Arch>;
  constexpr C smallest = Base::smallest;
#if defined(__AVX512F__)
  // The mask takes the place of a clamp: scalef alone would give subnormal weights, which the other
  // machines do not have, and no lane computes -inf - -inf (compilers mask the operation itself).
  if constexpr (is_avx512<Arch> && std::is_same_v<C, float>) {
    const __mmask16 seen = _mm512_cmp_ps_mask(x, v(smallest), _CMP_NLT_UQ);
    const v whole = xsimd::nearbyint(Base::exponent(x));
    const v rest = _mm512_maskz_mov_ps(seen, Base::rest(x, whole));
    return _mm512_maskz_scalef_ps(seen, Base::fraction(rest), whole);
  }
  if constexpr (is_avx512<Arch> && std::is_same_v<C, double>) {
    const __mmask8 seen = _mm512_cmp_pd_mask(x, v(smallest), _CMP_NLT_UQ);
    const v whole = xsimd::nearbyint(Base::exponent(x));
    const v rest = _mm512_maskz_mov_pd(seen, Base::rest(x, whole));
    return _mm512_maskz_scalef_pd(seen, Base::fraction(rest), whole);
  }
#endif
  const v clamped = xsimd::max(v(smallest), x);  // the machine's max returns its second on NaN
  const v whole = xsimd::nearbyint(Base::exponent(clamped));
  const v power = Base::fraction(Base::rest(clamped, whole));
  return xsimd::select(x < v(smallest), v(C(0)), v(xsimd::ldexp(power, xsimd::to_int(whole))));
}

template <class C, class Arch>
inline vector<C, Arch> exp2_nonpositive(const vector<C, Arch>& x) noexcept {
  return power_nonpositive<base_2<C, Arch>, C, Arch>(x);
}

template <class C, class Arch>
inline vector<C, Arch> exp_nonpositive(const vector<C, Arch>& x) noexcept {
  return power_nonpositive<base_e<C, Arch>, C, Arch>(x);
}

/// exp2_nonpositive, good to 1.1 units in the last place instead of 0.6, in 3/4 of the time where a
/// table of 16 fits a register: for loops that do little else.
template <class C, class Arch>
inline vector<C, Arch> exp2_nonpositive_by_table(const vector<C, Arch>& x) noexcept {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Arch> && std::is_same_v<C, float>) {
    // The bits of 2^(i / 16), less i << 19, which is what shifting 16 x + i to the exponent leaves
    // in the mantissa.
    alignas(64) static constexpr std::uint32_t table[16] = {
        0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
        0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
        0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
    constexpr float magic = 0x1.8p19F;  // its last digit is 1/16
    using v = vector<float, Arch>;
    const __mmask16 seen = _mm512_cmp_ps_mask(x, v(-126.0F), _CMP_NLT_UQ);
    const v shifted = x + v(magic);
    const v fraction = _mm512_maskz_sub_ps(seen, x, v(shifted - v(magic)));  // at most 1/32
    const __m512i sixteenths = _mm512_castps_si512(shifted);
    const v power = _mm512_castsi512_ps(
        _mm512_maskz_add_epi32(seen, _mm512_slli_epi32(sixteenths, 19),
                               _mm512_permutexvar_epi32(sixteenths, _mm512_load_si512(table))));
    // 2^fraction - 1 by its series to degree 3: relative error 9e-9.
    v p = fmadd<float, Arch>(v(5.55041087e-2F), fraction, v(2.40226507e-1F));
    p = fmadd<float, Arch>(p, fraction, v(6.93147182e-1F));
    return fmadd<float, Arch>(power, v(p * fraction), power);
  }
#endif
  return exp2_nonpositive<C, Arch>(x);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
