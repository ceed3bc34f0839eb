// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/kv/block_key.hpp>
#include <blockattn/kv/block_shape.hpp>
#include <cstddef>
#include <memory>

namespace blockattn::inline BLOCKATTN_ABI::kv::detail {

/// A block in memory. Key, shape and memory never change once the block is visible; pins belong to
/// the index and change under its lock.
struct block_entry {
  block_key key;
  std::uint64_t hash;
  block_shape shape;
  std::shared_ptr<std::byte> memory;  ///< gives itself back to the storage; null when 0 bytes
  index_t pins = 0;

  /// The keys of a layer, (tokens, kv_heads, head_dim). T must have the format of the keys.
  template <storage_scalar T>
  heads_view<T> k(const char* function, index_t layer) const {
    check_access(function, layer, format_of<T>, shape.key_format, "keys");
    return view<T>(layer * layer_bytes(shape), shape.head_dim);
  }

  /// The values of a layer, (tokens, kv_heads, value_dim). T must have the format of the values.
  template <storage_scalar T>
  heads_view<T> v(const char* function, index_t layer) const {
    check_access(function, layer, format_of<T>, shape.value_format, "values");
    return view<T>(layer * layer_bytes(shape) + key_bytes(shape), shape.value_dim);
  }

 private:
  void check_access(const char* function,
                    index_t layer,
                    storage_format asked,
                    storage_format stored,
                    const char* what) const {
    blockattn::detail::require(layer >= 0 && layer < shape.layers, function, ": layer is ", layer,
                               ", must be in [0, ", shape.layers, ")");
    blockattn::detail::require(asked == stored, function, ": ", what, " are stored as ",
                               name_of(stored), " but read as ", name_of(asked));
  }

  template <class T>
  heads_view<T> view(index_t offset, index_t dim) const noexcept {
    std::byte* const base = memory.get();
    T* const data = base == nullptr ? nullptr : reinterpret_cast<T*>(base + offset);
    return head_major(data, shape.tokens, shape.kv_heads, dim);
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::kv::detail
