// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <blockattn/core/config.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// Named, never included: the scalars of other libraries are accepted, none is required.
namespace Eigen {
struct bfloat16;
struct half;
}  // namespace Eigen
struct __nv_bfloat16;
struct __half;

namespace blockattn::inline BLOCKATTN_ABI {

/// How a scalar is stored. Arithmetic is done in fp32 (fp64 for fp64 storage) whatever the format.
enum class storage_format { fp64, fp32, bf16, fp16 };

/// 16-bit storage for engines that bring no type of their own: the bits, and nothing else.
struct bfloat16 {
  std::uint16_t bits = 0;
};
struct float16 {
  std::uint16_t bits = 0;
};

/// Maps a storage type to its format. Specialise it with `static constexpr storage_format format`
/// to admit another type; a 16-bit one must be trivially copyable and hold the IEEE (fp16) or
/// bfloat16 bits.
template <class T>
struct storage_traits {};
template <class T>
struct storage_traits<const T> : storage_traits<T> {};
template <>
struct storage_traits<double> {
  static constexpr storage_format format = storage_format::fp64;
};
template <>
struct storage_traits<float> {
  static constexpr storage_format format = storage_format::fp32;
};
template <>
struct storage_traits<bfloat16> {
  static constexpr storage_format format = storage_format::bf16;
};
template <>
struct storage_traits<float16> {
  static constexpr storage_format format = storage_format::fp16;
};
template <>
struct storage_traits<Eigen::bfloat16> {
  static constexpr storage_format format = storage_format::bf16;
};
template <>
struct storage_traits<Eigen::half> {
  static constexpr storage_format format = storage_format::fp16;
};
template <>
struct storage_traits<::__nv_bfloat16> {
  static constexpr storage_format format = storage_format::bf16;
};
template <>
struct storage_traits<::__half> {
  static constexpr storage_format format = storage_format::fp16;
};
#ifdef __STDCPP_BFLOAT16_T__
template <>
struct storage_traits<decltype(0.0bf16)> {
  static constexpr storage_format format = storage_format::bf16;
};
#endif
// std::float16_t is _Float16 where a compiler has both. nvcc's front end knows neither.
#if defined(__FLT16_MAX__) && !defined(__CUDACC__)
namespace detail {
__extension__ using native_float16 = _Float16;
}
template <>
struct storage_traits<detail::native_float16> {
  static constexpr storage_format format = storage_format::fp16;
};
#endif

/// Halves that an engine stores as plain 16-bit integers (ggml_fp16_t is one), by their name:
/// token_major(as_float16(data), ...). The same memory, read and written bit by bit.
inline float16* as_float16(std::uint16_t* bits) noexcept {
  return reinterpret_cast<float16*>(bits);
}
inline const float16* as_float16(const std::uint16_t* bits) noexcept {
  return reinterpret_cast<const float16*>(bits);
}
inline bfloat16* as_bfloat16(std::uint16_t* bits) noexcept {
  return reinterpret_cast<bfloat16*>(bits);
}
inline const bfloat16* as_bfloat16(const std::uint16_t* bits) noexcept {
  return reinterpret_cast<const bfloat16*>(bits);
}

/// A type that tensors may hold.
template <class T>
concept storage_scalar = requires {
  storage_traits<T>::format;
};

template <storage_scalar T>
inline constexpr storage_format format_of = storage_traits<T>::format;

/// fp64 when every type is fp64 storage, else fp32. Mixing fp64 with a narrower type is refused at
/// compile time.
template <storage_scalar... Ts>
struct accumulator {
  static constexpr bool any_fp64 = ((format_of<Ts> == storage_format::fp64) || ...);
  static constexpr bool all_fp64 = ((format_of<Ts> == storage_format::fp64) && ...);
  static_assert(any_fp64 == all_fp64,
                "blockattn: double cannot be mixed with narrower storage types");
  using type = std::conditional_t<all_fp64, double, float>;
};
template <storage_scalar... Ts>
using accumulator_t = typename accumulator<Ts...>::type;

namespace detail {

inline float fp32_from_bf16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Round to nearest even; NaN stays NaN.
inline std::uint16_t bf16_from_fp32(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float fp32_from_fp16(std::uint16_t half) noexcept {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U)
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  if (magnitude >= 0x0400U) return std::bit_cast<float>(sign | ((magnitude << 13) + (112U << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24F;  // exact
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}

/// Round to nearest even, to infinity from 65520 up; NaN stays NaN.
inline std::uint16_t fp16_from_fp32(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);
  if (magnitude < 0x38800000U) {  // below 2^-14: adding 1/2 aligns the last kept bit with 2^-24
    const float aligned = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(aligned) - 0x3f000000U));
  }
  const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - (112U << 23)) >> 13));
}

template <class T>
std::uint16_t bits16(const T& value) noexcept {
  static_assert(sizeof(T) == 2 && std::is_trivially_copyable_v<T>);
  std::uint16_t bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}

}  // namespace detail

/// The stored value as its accumulator: exact for every format.
template <storage_scalar T>
auto load_scalar(const T& stored) noexcept {
  if constexpr (format_of<T> == storage_format::fp64 || format_of<T> == storage_format::fp32) {
    return stored;
  } else if constexpr (format_of<T> == storage_format::bf16) {
    return detail::fp32_from_bf16(detail::bits16(stored));
  } else {
    return detail::fp32_from_fp16(detail::bits16(stored));
  }
}

/// Rounds once, to nearest even, from the accumulator to the storage type.
template <storage_scalar T, class Value>
void store_scalar(T& stored, Value value) noexcept {
  if constexpr (format_of<T> == storage_format::fp64 || format_of<T> == storage_format::fp32) {
    stored = static_cast<T>(value);
  } else {
    const auto narrow = static_cast<float>(value);
    const std::uint16_t bits = format_of<T> == storage_format::bf16
                                   ? detail::bf16_from_fp32(narrow)
                                   : detail::fp16_from_fp32(narrow);
    std::memcpy(static_cast<void*>(&stored), &bits, 2);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI
