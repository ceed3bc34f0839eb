// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/workspace.hpp>
#include <concepts>
#include <cstddef>
#include <new>

namespace blockattn::inline BLOCKATTN_ABI::kv {

/// Where a block store keeps its blocks: huge pages, pinned host memory, a file mapping, a NUMA
/// node. `allocate(bytes)` returns memory aligned to workspace_alignment, or nullptr when there is
/// none; `release(memory, bytes)` takes it back and does not throw. Like malloc, both may be called
/// from several threads at once. bytes > 0.
template <class S>
concept block_storage = requires(S& storage, std::byte* memory, index_t bytes) {
  { storage.allocate(bytes) } -> std::same_as<std::byte*>;
  storage.release(memory, bytes);
};

/// The process heap.
struct heap_storage {
  std::byte* allocate(index_t bytes) const noexcept {
    return static_cast<std::byte*>(::operator new (
        static_cast<std::size_t>(bytes), std::align_val_t{workspace_alignment}, std::nothrow));
  }
  void release(std::byte* memory, index_t /*bytes*/) const noexcept {
    ::operator delete (memory, std::align_val_t{workspace_alignment});
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::kv
