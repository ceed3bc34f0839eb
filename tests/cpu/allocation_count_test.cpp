// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "support/allocation_count.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

// A translation unit of its own: where new and delete are seen being malloc and free, GCC warns of
// each vector that mixes them.

namespace {

std::atomic<blockattn::index_t> allocations{0};

void* counted_allocation(std::size_t size) noexcept {
  ++allocations;
  return std::malloc(size > 0 ? size : 1);
}

void* counted_allocation(std::size_t size, std::align_val_t alignment) noexcept {
  ++allocations;
  const auto multiple = static_cast<std::size_t>(alignment);
  return std::aligned_alloc(multiple, (size + multiple) / multiple * multiple);
}

void* required(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

blockattn::index_t blockattn_test::allocation_count() noexcept { return allocations; }

void* operator new(std::size_t size) { return required(counted_allocation(size)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return required(counted_allocation(size, alignment));
}
// Named too because sanitizers bring their own, which would not match the delete below.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return counted_allocation(size);
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return counted_allocation(size, alignment);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
