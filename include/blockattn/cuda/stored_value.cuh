// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/tensor_core.cuh>
#include <cstdint>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What kernels take instead of an engine's own type of the same format.
template <storage_format Format>
using stored_type =
    std::conditional_t<Format == storage_format::fp32,
                       float,
                       std::conditional_t<Format == storage_format::bf16, bfloat16, float16>>;

/// `Width` neighbouring values of T as they are stored, in 8 or 16 bytes.
template <class T, int Width>
struct stored_piece {
  static constexpr int bytes = Width * static_cast<int>(sizeof(T));
  static_assert(bytes == 8 || bytes == 16);
  using vector = std::conditional_t<bytes == 16, uint4, uint2>;

  std::uint32_t words[bytes / 4] = {};

  __device__ __forceinline__ float at(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else {
      return tensor_operand<format_of<T>>::widen(
          static_cast<std::uint16_t>(words[i / 2] >> i % 2 * 16));
    }
  }
  /// Each value rounded once.
  static __device__ __forceinline__ stored_piece rounded(const float (&values)[Width]) {
    stored_piece piece;
#pragma unroll
    for (int i = 0; i < bytes / 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        piece.words[i] = __float_as_uint(values[i]);
      } else {
        piece.words[i] = tensor_operand<format_of<T>>::pack(values[2 * i], values[2 * i + 1]);
      }
    }
    return piece;
  }

  /// One access; the address is a multiple of `bytes`.
  __device__ __forceinline__ void load(const void* from) {
    const vector loaded = *static_cast<const vector*>(from);
    words[0] = loaded.x;
    words[1] = loaded.y;
    if constexpr (bytes == 16) {
      words[2] = loaded.z;
      words[3] = loaded.w;
    }
  }
  __device__ __forceinline__ void store(void* to) const { *static_cast<vector*>(to) = packed(); }
  /// A store that asks caches to forget it first: nobody reads it soon.
  __device__ __forceinline__ void stream(void* to) const {
    __stcs(static_cast<vector*>(to), packed());
  }

  /// Value i alone, into a piece that holds none there.
  __device__ __forceinline__ void load_one(int i, const T* from) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(*from);
    } else {
      words[i / 2] |= static_cast<std::uint32_t>(from->bits) << i % 2 * 16;
    }
  }

 private:
  __device__ __forceinline__ vector packed() const {
    if constexpr (bytes == 16) {
      return {words[0], words[1], words[2], words[3]};
    } else {
      return {words[0], words[1]};
    }
  }
};

/// The values of a tensor that a kernel does not read.
struct absent_values {};

template <int Width>
struct stored_piece<absent_values, Width> {
  static constexpr int bytes = 0;
  __device__ __forceinline__ float at(int) const { return 0; }
  __device__ __forceinline__ void load(const void*) {}
  __device__ __forceinline__ void store(void*) const {}
  __device__ __forceinline__ void load_one(int, const absent_values*) {}
};

/// One value, rounded once.
template <class T>
__device__ __forceinline__ void store_value(T* to, float value) {
  if constexpr (sizeof(T) == 4) {
    *to = value;
  } else {
    to->bits = static_cast<std::uint16_t>(tensor_operand<format_of<T>>::pack(value, 0.0F));
  }
}
template <class T>
__device__ __forceinline__ float load_value(const T* from) {
  if constexpr (sizeof(T) == 4) {
    return *from;
  } else {
    return tensor_operand<format_of<T>>::widen(from->bits);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
