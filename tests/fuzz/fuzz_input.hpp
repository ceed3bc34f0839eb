// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace blockattn_test {

using namespace blockattn;

/// Reads numbers from the bytes of a fuzzer; zeros after the last one.
class fuzz_input {
 public:
  fuzz_input(const std::uint8_t* bytes, std::size_t size) : bytes_(bytes), left_(size) {}

  bool empty() const { return left_ == 0; }
  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *bytes_++;
  }
  /// In [low, high], from one byte.
  index_t small(index_t low, index_t high) { return low + byte() % (high - low + 1); }
  /// Any 64-bit number, most often one near 0 or near a power of two.
  index_t wild() {
    const std::uint8_t kind = byte();
    const auto near = static_cast<std::int8_t>(byte());
    if (kind < 128) return near;
    const auto power = static_cast<std::uint64_t>(1) << (kind % 64);
    return static_cast<index_t>(power + static_cast<std::uint64_t>(near));
  }

 private:
  const std::uint8_t* bytes_;
  std::size_t left_;
};

/// Ends the run with a sentence, which the fuzzer reports with its input.
inline void fuzz_require(bool condition, const std::string& sentence) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", sentence.c_str());
  std::abort();
}

}  // namespace blockattn_test
