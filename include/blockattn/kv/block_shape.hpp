// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/core/storage.hpp>
#include <blockattn/core/workspace.hpp>

namespace blockattn::inline BLOCKATTN_ABI::kv {

/// What a cached block holds, and where. For each layer in turn: the keys as a contiguous
/// (kv_heads, tokens, head_dim) buffer, then the values as (kv_heads, tokens, value_dim), each
/// starting at a multiple of workspace_alignment bytes. The rows of one head of one layer lie one
/// after the other, which is how a kernel streams them; the layout is the same for every
/// instruction set.
struct block_shape {
  index_t layers = 0;
  index_t kv_heads = 0;
  index_t tokens = 0;
  index_t head_dim = 0;
  index_t value_dim = 0;
  storage_format key_format = storage_format::fp32;
  storage_format value_format = storage_format::fp32;
  friend constexpr bool operator==(const block_shape&, const block_shape&) = default;
};

namespace detail {

constexpr const char* name_of(storage_format format) noexcept {
  switch (format) {
    case storage_format::fp64:
      return "fp64";
    case storage_format::fp32:
      return "fp32";
    case storage_format::bf16:
      return "bf16";
    default:
      return "fp16";
  }
}

constexpr index_t bytes_per_value(storage_format format) noexcept {
  switch (format) {
    case storage_format::fp64:
      return 8;
    case storage_format::fp32:
      return 4;
    default:
      return 2;
  }
}

/// Bytes from the keys of a layer to its values.
constexpr index_t key_bytes(const block_shape& shape) noexcept {
  return round_up(
      shape.kv_heads * shape.tokens * shape.head_dim * bytes_per_value(shape.key_format),
      workspace_alignment);
}

/// Bytes from one layer to the next.
constexpr index_t layer_bytes(const block_shape& shape) noexcept {
  return key_bytes(shape) + round_up(shape.kv_heads * shape.tokens * shape.value_dim *
                                         bytes_per_value(shape.value_format),
                                     workspace_alignment);
}

}  // namespace detail

/// Bytes that a block of this shape takes in a store.
constexpr index_t block_bytes(const block_shape& shape) noexcept {
  return shape.layers * detail::layer_bytes(shape);
}

namespace detail {

/// Refuses sizes that are negative or so large that a byte count could overflow.
inline void check_shape(const char* function, const block_shape& shape) {
  using blockattn::detail::check_enumerator;
  check_enumerator(function, "shape.key_format", shape.key_format, storage_format::fp16);
  check_enumerator(function, "shape.value_format", shape.value_format, storage_format::fp16);
  double bytes = 8;
  const auto check_size = [&](const char* name, index_t size) {
    blockattn::detail::require(size >= 0, function, ": shape.", name, " is ", size,
                               ", must not be negative");
    bytes *= static_cast<double>(size) + 1;
  };
  check_size("layers", shape.layers);
  check_size("kv_heads", shape.kv_heads);
  check_size("tokens", shape.tokens);
  check_size("head_dim", shape.head_dim);
  check_size("value_dim", shape.value_dim);
  bytes /= static_cast<double>(std::min(shape.head_dim, shape.value_dim)) + 1;
  blockattn::detail::require(bytes < 0x1p60, function, ": a block of ", shape.layers, " layers, ",
                             shape.kv_heads, " kv_heads, ", shape.tokens, " tokens, head_dim ",
                             shape.head_dim, " and value_dim ", shape.value_dim,
                             " has more bytes than can be counted");
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI::kv
