// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// Alignment in bytes of every workspace and of every piece cut from one: a cache line, the widest
/// vector.
inline constexpr index_t workspace_alignment = 64;

/// Owns `size` bytes aligned to `workspace_alignment`, uninitialised. For the overloads that
/// allocate; engines pass their own memory.
class workspace_buffer {
 public:
  /// Errors: a size beyond half the address space, which only sizes that overflow have.
  explicit workspace_buffer(index_t size) : bytes_(allocate(size)), size_(size) {}

  std::span<std::byte> bytes() const noexcept {
    return {bytes_.get(), static_cast<std::size_t>(size_)};
  }

 private:
  struct release {
    void operator()(std::byte* bytes) const noexcept {
      ::operator delete (bytes, std::align_val_t{workspace_alignment});
    }
  };
  static std::byte* allocate(index_t size) {
    detail::require(0 <= size && size < (index_t{1} << 62), "workspace_buffer: size is ", size,
                    " bytes, more than any machine has");
    return static_cast<std::byte*>(
        ::operator new (static_cast<std::size_t>(size), std::align_val_t{workspace_alignment}));
  }

  std::unique_ptr<std::byte[], release> bytes_;
  index_t size_;
};

namespace detail {

/// Adds up aligned pieces: the same sequence of `take` calls lays out a workspace and measures it. A
/// sum beyond index_t stays near its end, and is refused as more than any memory has.
class workspace_layout {
 public:
  /// Reserves `count` values of T and returns their byte offset.
  template <class T>
  index_t take(index_t count) noexcept {
    const index_t offset = size_;
    const index_t bytes = saturating_multiply(count, static_cast<index_t>(sizeof(T)));
    const index_t padded = saturating_add(bytes, workspace_alignment - 1);
    size_ = saturating_add(size_, padded / workspace_alignment * workspace_alignment);
    return offset;
  }
  index_t size() const noexcept { return size_; }

 private:
  index_t size_ = 0;
};

/// The piece at a byte offset of a workspace.
template <class T>
T* piece(std::span<std::byte> workspace, index_t offset) noexcept {
  return reinterpret_cast<T*>(workspace.data() + offset);
}

/// Refuses memory, which an argument of this name gives, that is too small or misaligned.
inline void check_memory(const char* function,
                         const char* name,
                         std::span<std::byte> memory,
                         index_t needed,
                         index_t alignment) {
  const auto size = static_cast<index_t>(memory.size());
  require(size >= needed, function, ": ", name, " has ", size, " bytes, needs ", needed);
  const auto misalignment = static_cast<index_t>(reinterpret_cast<std::uintptr_t>(memory.data()) %
                                                 static_cast<std::uintptr_t>(alignment));
  require(needed == 0 || misalignment == 0, function, ": ", name, " is ", misalignment,
          " bytes past a multiple of ", alignment);
}

inline void check_workspace(const char* function, std::span<std::byte> workspace, index_t needed) {
  check_memory(function, "workspace", workspace, needed, workspace_alignment);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
