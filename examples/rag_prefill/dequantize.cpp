// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "dequantize.hpp"

#include <Eigen/Core>
#include <cstring>

namespace rag {
namespace {

constexpr std::size_t block_values = 32;

float read_half(const std::byte* bytes) {
  std::uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(bits));
}

void unpack_q8_0(const std::byte* block, float* values) {
  const float scale = read_half(block);
  for (std::size_t i = 0; i < block_values; ++i) {
    values[i] = scale * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
  }
}

void unpack_q4_1(const std::byte* block, float* values) {
  const float scale = read_half(block);
  const float minimum = read_half(block + 2);
  for (std::size_t i = 0; i < block_values / 2; ++i) {
    const auto pair = std::to_integer<unsigned>(block[4 + i]);
    values[i] = scale * static_cast<float>(pair & 15U) + minimum;
    values[i + block_values / 2] = scale * static_cast<float>(pair >> 4U) + minimum;
  }
}

}  // namespace

void dequantize(const gguf_tensor& tensor, std::span<float> values) {
  if (tensor.format == tensor_format::f32) {
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    return;
  }
  const auto unpack = tensor.format == tensor_format::q8_0 ? unpack_q8_0 : unpack_q4_1;
  const auto block_bytes = static_cast<std::size_t>(block_of(tensor.format).bytes);
  for (std::size_t block = 0; block * block_values < values.size(); ++block) {
    unpack(tensor.data.data() + block * block_bytes, values.data() + block * block_values);
  }
}

}  // namespace rag
