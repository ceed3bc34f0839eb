// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/storage.hpp>
#include <blockattn/cuda/tensor_core.cuh>
#include <cstdint>
#include <limits>
#include <type_traits>

/// \file
/// Rows of tensors in any storage format, read and written in chunks of eight values, and launches
/// that give each row some lanes of a warp.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// True when every row begins at a multiple of 16 bytes.
template <class T>
bool rows_are_aligned(const heads_view<T>& view) {
  constexpr index_t values = 16 / static_cast<index_t>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && view.token_stride % values == 0 &&
         view.head_stride % values == 0;
}

/// How kernels hold a stored value: fp32 as it is, the 16-bit formats as their bits.
template <storage_format Format>
using stored_bits = std::conditional_t<Format == storage_format::fp32, float, std::uint16_t>;

/// The stored value, exact.
template <storage_format Format>
__device__ __forceinline__ float widen(stored_bits<Format> bits) {
  if constexpr (Format == storage_format::fp32) {
    return bits;
  } else {
    return tensor_operand<Format>::widen(bits);
  }
}

/// Rounds once, to nearest even.
template <storage_format Format>
__device__ __forceinline__ stored_bits<Format> narrow(float value) {
  if constexpr (Format == storage_format::fp32) {
    return value;
  } else {
    return static_cast<std::uint16_t>(tensor_operand<Format>::pack(value, 0.0F));
  }
}

/// Values that a lane reads or writes at once: 16 bytes in the 16-bit formats.
inline constexpr int chunk_size = 8;

/// Reads the first `count` of eight neighbouring values, which may be 0 or less; the others are 0.
/// With `vectors` the first one is at a multiple of 16 bytes.
template <storage_format Format>
__device__ __forceinline__ void load_chunk(float (&values)[chunk_size],
                                           const stored_bits<Format>* from,
                                           int count,
                                           int vectors) {
  if (vectors != 0 && count >= chunk_size) {
    if constexpr (Format == storage_format::fp32) {
      const float4 low = reinterpret_cast<const float4*>(from)[0];
      const float4 high = reinterpret_cast<const float4*>(from)[1];
      const float all[chunk_size] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < chunk_size; ++i) values[i] = all[i];
    } else {
      const uint4 packed = *reinterpret_cast<const uint4*>(from);
      const std::uint32_t pairs[] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int i = 0; i < chunk_size / 2; ++i) {
        values[2 * i] = widen<Format>(static_cast<std::uint16_t>(pairs[i]));
        values[2 * i + 1] = widen<Format>(static_cast<std::uint16_t>(pairs[i] >> 16));
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < chunk_size; ++i) values[i] = i < count ? widen<Format>(from[i]) : 0.0F;
}

/// Writes the first `count` of eight neighbouring values.
template <storage_format Format>
__device__ __forceinline__ void store_chunk(stored_bits<Format>* to,
                                            const float (&values)[chunk_size],
                                            int count,
                                            int vectors) {
  if (vectors != 0 && count >= chunk_size) {
    if constexpr (Format == storage_format::fp32) {
      reinterpret_cast<float4*>(to)[0] = {values[0], values[1], values[2], values[3]};
      reinterpret_cast<float4*>(to)[1] = {values[4], values[5], values[6], values[7]};
    } else {
      using operand = tensor_operand<Format>;
      *reinterpret_cast<uint4*>(to) = {
          operand::pack(values[0], values[1]), operand::pack(values[2], values[3]),
          operand::pack(values[4], values[5]), operand::pack(values[6], values[7])};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < chunk_size; ++i) {
    if (i < count) to[i] = narrow<Format>(values[i]);
  }
}

/// A heads_view as kernels take it; Bits is stored_bits of its format, const for an input.
template <class Bits>
struct device_rows {
  Bits* data;
  std::int64_t token_stride, head_stride;  ///< elements
  int vectors;                             ///< 1 when every row begins at a multiple of 16 bytes

  __device__ __forceinline__ Bits* row(std::int64_t token, std::int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};
template <storage_format Format>
using input_rows = device_rows<const stored_bits<Format>>;
template <storage_format Format>
using result_rows = device_rows<stored_bits<Format>>;

template <class T>
auto as_device_rows(const heads_view<T>& view) {
  using bits = stored_bits<format_of<T>>;
  using element = std::conditional_t<std::is_const_v<T>, const bits, bits>;
  return device_rows<element>{.data = reinterpret_cast<element*>(view.data),
                              .token_stride = view.token_stride,
                              .head_stride = view.head_stride,
                              .vectors = rows_are_aligned(view) ? 1 : 0};
}

/// An lse_view as kernels take it; data is null when it is absent.
template <class T>
struct device_entries {
  T* data;
  std::int64_t token_stride, head_stride;  ///< elements

  __device__ __forceinline__ T& at(std::int64_t token, std::int64_t head) const {
    return data[token * token_stride + head * head_stride];
  }
};

template <class T>
device_entries<T> as_device_entries(const lse_view<T>& view) {
  return {view.data, view.token_stride, view.head_stride};
}

inline constexpr int row_threads = 256;
inline constexpr unsigned whole_warp = 0xffffffffU;

/// One lane of the lanes that share a row.
struct row_lane {
  std::int64_t token, head;  ///< 0 outside
  int lane;                  ///< in [0, width)
  int width;                 ///< lanes that share the row: a power of two up to 32
  bool inside;               ///< false for lanes that have no row and only shuffle
};

/// How the rows of a (tokens, heads, columns) result are given to lanes: a chunk for each lane, so
/// that narrow rows share a warp; the heads of a token are neighbours.
struct row_split {
  std::int64_t rows;
  unsigned heads;
  int width;

  unsigned ctas() const {
    return static_cast<unsigned>(ceil_divide(index_t{rows} * width, index_t{row_threads}));
  }
  __device__ __forceinline__ row_lane place() const {
    const unsigned thread = threadIdx.x;
    const unsigned lanes = static_cast<unsigned>(width);
    const std::int64_t row =
        static_cast<std::int64_t>(blockIdx.x) * (row_threads / lanes) + thread / lanes;
    const bool inside = row < rows;
    const unsigned number = inside ? static_cast<unsigned>(row) : 0;
    return {number / heads, number % heads, static_cast<int>(thread % lanes), width, inside};
  }
};

/// Refuses more rows, or longer ones, than one launch takes.
inline row_split split_rows(const char* function, index_t tokens, index_t heads, index_t columns) {
  constexpr index_t most = std::numeric_limits<int>::max();
  blockattn::detail::require(tokens * heads <= most && columns <= most / 2, function, ": (", tokens,
                             ", ", heads, ", ", columns, ") is more than a launch takes");
  int width = 1;
  while (width < 32 && width * chunk_size < columns) width *= 2;
  return {tokens * heads, static_cast<unsigned>(heads), width};
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
