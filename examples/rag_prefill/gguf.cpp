// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "gguf.hpp"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "input_error.hpp"

// Layout of the format: github.com/ggml-org/ggml, docs/gguf.md.

namespace rag {
namespace {

std::vector<std::byte> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good() && !std::filesystem::is_directory(path), path,
          ": the model file cannot be opened");
  std::vector<std::byte> bytes(std::filesystem::file_size(path));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  require(file.good(), path, ": the model file cannot be read");
  return bytes;
}

/// Reads little-endian fields one after the other and never past the end.
class cursor {
 public:
  cursor(const std::string& path, std::span<const std::byte> bytes) : path_(path), bytes_(bytes) {}

  std::size_t offset() const { return offset_; }
  std::size_t remaining() const { return bytes_.size() - offset_; }

  const std::byte* take(std::uint64_t size) {
    require(size <= remaining(), path_, ": the model is corrupt or cut short: ", size,
            " bytes expected at offset ", offset_, ", but the file ends at ", bytes_.size());
    const std::byte* const begin = bytes_.data() + offset_;
    offset_ += size;
    return begin;
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  }

  std::string text() {
    const auto size = number<std::uint64_t>();
    return {reinterpret_cast<const char*>(take(size)), static_cast<std::size_t>(size)};
  }

 private:
  const std::string& path_;
  std::span<const std::byte> bytes_;
  std::size_t offset_ = 0;
};

enum class value_type : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  text = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12
};

/// Calls `visit` with a function that reads one scalar of `type`.
template <class Visit>
gguf_file::value read_as(const std::string& path, value_type type, cursor& in, const Visit& visit) {
  const auto integer = [&]<class T>(T) {
    return visit([&] { return static_cast<std::int64_t>(in.number<T>()); });
  };
  switch (type) {
    case value_type::u8:
    case value_type::boolean:
      return integer(std::uint8_t{});
    case value_type::i8:
      return integer(std::int8_t{});
    case value_type::u16:
      return integer(std::uint16_t{});
    case value_type::i16:
      return integer(std::int16_t{});
    case value_type::u32:
      return integer(std::uint32_t{});
    case value_type::i32:
      return integer(std::int32_t{});
    case value_type::u64:
      return integer(std::uint64_t{});
    case value_type::i64:
      return integer(std::int64_t{});
    case value_type::f32:
      return visit([&] { return static_cast<double>(in.number<float>()); });
    case value_type::f64:
      return visit([&] { return in.number<double>(); });
    case value_type::text:
      return visit([&] { return in.text(); });
    case value_type::array:
      break;
  }
  throw input_error(path + ": the model is corrupt: value type " +
                    std::to_string(static_cast<std::uint32_t>(type)) + " before offset " +
                    std::to_string(in.offset()));
}

gguf_file::value read_value(const std::string& path, cursor& in) {
  const auto type = in.number<value_type>();
  if (type != value_type::array) {
    return read_as(path, type, in, [](const auto& next) -> gguf_file::value { return next(); });
  }
  const auto element_type = in.number<value_type>();
  const auto count = in.number<std::uint64_t>();
  // Every element takes at least a byte: a larger count is a lie that must not reach an allocation.
  require(count <= in.remaining(), path, ": the model is corrupt or cut short: ", count,
          " elements expected at offset ", in.offset(), ", but only ", in.remaining(),
          " bytes follow");
  return read_as(path, element_type, in, [&](const auto& next) -> gguf_file::value {
    std::vector<decltype(next())> elements;
    elements.reserve(static_cast<std::size_t>(count));
    for (std::uint64_t i = 0; i < count; ++i) elements.push_back(next());
    return elements;
  });
}

/// A tensor's description; `offset` receives where its data starts inside the data section.
gguf_tensor read_tensor(const std::string& path, cursor& in, std::uint64_t& offset) {
  gguf_tensor tensor;
  tensor.name = in.text();
  const auto dimensions = in.number<std::uint32_t>();
  require(dimensions == 1 || dimensions == 2, path, ": tensor ", tensor.name, " has ", dimensions,
          " dimensions, only vectors and matrices are read");
  // The fastest dimension comes first.
  tensor.columns = in.number<std::int64_t>();
  tensor.rows = dimensions == 2 ? in.number<std::int64_t>() : 1;
  tensor.format = in.number<tensor_format>();
  offset = in.number<std::uint64_t>();

  constexpr std::int64_t limit = std::int64_t{1} << 30;  // 4 bytes * limit^2 fits in 64 bits
  require(0 < tensor.columns && tensor.columns < limit && 0 < tensor.rows && tensor.rows < limit,
          path, ": the model is corrupt: tensor ", tensor.name, " is ", tensor.rows, " x ",
          tensor.columns);
  const bool known = tensor.format == tensor_format::f32 || tensor.format == tensor_format::q4_1 ||
                     tensor.format == tensor_format::q8_0;
  require(known, path, ": tensor ", tensor.name, " has GGML type ",
          static_cast<std::uint32_t>(tensor.format),
          "; this example reads F32 (0), Q4_1 (3) and Q8_0 (8)");
  const auto values = block_of(tensor.format).values;
  require(tensor.columns % values == 0, path, ": the model is corrupt: rows of tensor ",
          tensor.name, " have ", tensor.columns, " values, not a multiple of ", values);
  return tensor;
}

}  // namespace

format_block block_of(tensor_format format) {
  switch (format) {
    case tensor_format::f32:
      return {1, 4};
    case tensor_format::q4_1:
      return {32, 2 + 2 + 16};  // scale, minimum, 32 nibbles
    case tensor_format::q8_0:
      return {32, 2 + 32};  // scale, 32 signed bytes
  }
  return {1, 0};
}

gguf_file::gguf_file(const std::string& path) : path_(path), bytes_(read_file(path)) {
  cursor in(path_, bytes_);
  require(std::memcmp(in.take(4), "GGUF", 4) == 0, path, ": not a GGUF model file");
  const auto version = in.number<std::uint32_t>();
  require(version == 2 || version == 3, path, ": GGUF version ", version,
          " is not supported (2 and 3 are)");
  const auto tensor_count = in.number<std::uint64_t>();
  const auto value_count = in.number<std::uint64_t>();
  for (std::uint64_t i = 0; i < value_count; ++i) {
    std::string key = in.text();
    values_.insert_or_assign(std::move(key), read_value(path, in));
  }

  std::vector<std::pair<gguf_tensor, std::uint64_t>> tensors;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    std::uint64_t offset = 0;
    gguf_tensor tensor = read_tensor(path, in, offset);
    tensors.emplace_back(std::move(tensor), offset);
  }

  const auto alignment =
      has("general.alignment") ? static_cast<std::size_t>(integer("general.alignment")) : 32;
  require(0 < alignment && alignment <= 4096, path, ": the model is corrupt: alignment ",
          alignment);
  const std::size_t data_begin =
      std::min(bytes_.size(), (in.offset() + alignment - 1) / alignment * alignment);
  const std::span<const std::byte> data = std::span(bytes_).subspan(data_begin);
  for (auto& [tensor, offset] : tensors) {
    const format_block block = block_of(tensor.format);
    const auto size =
        static_cast<std::uint64_t>(tensor.rows * (tensor.columns / block.values) * block.bytes);
    require(offset <= data.size() && size <= data.size() - offset, path,
            ": the model is corrupt or cut short: tensor ", tensor.name, " ends at offset ",
            data_begin + offset + size, ", but the file at ", bytes_.size());
    tensor.data = data.subspan(offset, size);
    tensors_.insert_or_assign(tensor.name, tensor);
  }
}

const gguf_tensor& gguf_file::tensor(const std::string& name,
                                     std::int64_t rows,
                                     std::int64_t columns) const {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), path_, ": the model has no tensor ", name);
  const gguf_tensor& tensor = found->second;
  require(tensor.rows == rows && tensor.columns == columns, path_, ": tensor ", name, " is ",
          tensor.rows, " x ", tensor.columns, ", expected ", rows, " x ", columns);
  return tensor;
}

template <class T>
const T& gguf_file::get(const std::string& key) const {
  const auto found = values_.find(key);
  require(found != values_.end(), path_, ": the model has no value ", key);
  const T* const typed = std::get_if<T>(&found->second);
  require(typed != nullptr, path_, ": the model's value ", key, " has an unexpected type");
  return *typed;
}

template const std::int64_t& gguf_file::get(const std::string&) const;
template const double& gguf_file::get(const std::string&) const;
template const std::string& gguf_file::get(const std::string&) const;
template const std::vector<std::int64_t>& gguf_file::get(const std::string&) const;
template const std::vector<std::string>& gguf_file::get(const std::string&) const;

}  // namespace rag
