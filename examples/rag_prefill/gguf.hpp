// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace rag {

/// The storage formats that this example reads, with GGML's numbers for them.
enum class tensor_format : std::uint32_t { f32 = 0, q4_1 = 3, q8_0 = 8 };

/// Formats store runs of `values` numbers in `bytes` bytes.
struct format_block {
  std::int64_t values;
  std::int64_t bytes;
};
format_block block_of(tensor_format format);

/// A matrix (rows, columns) or a vector (rows == 1) inside the file, row-major.
struct gguf_tensor {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  tensor_format format = tensor_format::f32;
  std::span<const std::byte> data;  ///< rows * columns values, still packed
};

/// A GGUF file (versions 2 and 3, little-endian) in memory: named values and named tensors.
/// Everything that the file claims is checked against its size, so a truncated or corrupt file is
/// an `input_error`, never a wild read.
class gguf_file {
 public:
  /// Integers and booleans widen to int64, floats to double. Arrays of arrays are refused.
  using value = std::variant<std::int64_t,
                             double,
                             std::string,
                             std::vector<std::int64_t>,
                             std::vector<double>,
                             std::vector<std::string>>;

  explicit gguf_file(const std::string& path);

  bool has(const std::string& key) const { return values_.contains(key); }
  std::int64_t integer(const std::string& key) const { return get<std::int64_t>(key); }
  double real(const std::string& key) const { return get<double>(key); }
  const std::string& text(const std::string& key) const { return get<std::string>(key); }
  const std::vector<std::int64_t>& integers(const std::string& key) const {
    return get<std::vector<std::int64_t>>(key);
  }
  const std::vector<std::string>& texts(const std::string& key) const {
    return get<std::vector<std::string>>(key);
  }

  bool has_tensor(const std::string& name) const { return tensors_.contains(name); }
  /// The tensor of that name, which must have this shape.
  const gguf_tensor& tensor(const std::string& name, std::int64_t rows, std::int64_t columns) const;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  template <class T>
  const T& get(const std::string& key) const;

  std::string path_;
  std::vector<std::byte> bytes_;
  std::map<std::string, value> values_;
  std::map<std::string, gguf_tensor> tensors_;
};

}  // namespace rag
