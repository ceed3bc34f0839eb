// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "weights.hpp"

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "dequantize.hpp"
#include "input_error.hpp"

namespace rag {
namespace {

/// 64-bit FNV-1a: the same on every platform, and enough to tell one's own models apart. A server
/// that takes models from strangers needs a cryptographic digest.
std::uint64_t fnv1a(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3U;
  return hash;
}

/// One of the matrices that are stacked into a larger one.
struct matrix_part {
  std::string name;
  std::int64_t rows;
};

/// Reads matrices with the same number of columns one below the other.
matrix read_matrix(const gguf_file& file,
                   std::initializer_list<matrix_part> parts,
                   std::int64_t columns) {
  // All shapes are checked before memory is taken for what the file claims.
  std::int64_t rows = 0;
  for (const matrix_part& part : parts) rows += file.tensor(part.name, part.rows, columns).rows;
  matrix stack(rows, columns);
  std::int64_t first = 0;
  for (const matrix_part& part : parts) {
    dequantize(file.tensor(part.name, part.rows, columns),
               {stack.row(first).data(), static_cast<std::size_t>(part.rows * columns)});
    first += part.rows;
  }
  return stack;
}

layer_weights read_layer(const gguf_file& file, const llama_shape& shape, std::int64_t index) {
  const std::string prefix = "blk." + std::to_string(index) + ".";
  const std::int64_t q_rows = shape.heads * shape.head_dim;
  const std::int64_t kv_rows = shape.kv_heads * shape.head_dim;
  return {
      .attention_norm = read_matrix(file, {{prefix + "attn_norm.weight", 1}}, shape.width),
      .qkv = read_matrix(file,
                         {{prefix + "attn_q.weight", q_rows},
                          {prefix + "attn_k.weight", kv_rows},
                          {prefix + "attn_v.weight", kv_rows}},
                         shape.width),
      .attention_output = read_matrix(file, {{prefix + "attn_output.weight", shape.width}}, q_rows),
      .ffn_norm = read_matrix(file, {{prefix + "ffn_norm.weight", 1}}, shape.width),
      .gate_up = read_matrix(file,
                             {{prefix + "ffn_gate.weight", shape.ffn_width},
                              {prefix + "ffn_up.weight", shape.ffn_width}},
                             shape.width),
      .down = read_matrix(file, {{prefix + "ffn_down.weight", shape.width}}, shape.ffn_width)};
}

}  // namespace

llama_shape read_shape(const gguf_file& file) {
  const std::string& architecture = file.text("general.architecture");
  require(architecture == "llama", file.path(), ": architecture ", architecture,
          " is not supported, only llama");
  const auto positive = [&](const std::string& key) {
    const std::int64_t value = file.integer(key);
    constexpr std::int64_t limit = std::int64_t{1} << 24;
    require(0 < value && value < limit, file.path(), ": the model is corrupt: ", key, " is ",
            value);
    return value;
  };
  llama_shape shape;
  shape.layers = positive("llama.block_count");
  shape.width = positive("llama.embedding_length");
  shape.heads = positive("llama.attention.head_count");
  shape.kv_heads = positive("llama.attention.head_count_kv");
  shape.ffn_width = positive("llama.feed_forward_length");
  shape.vocabulary = static_cast<std::int64_t>(file.texts("tokenizer.ggml.tokens").size());
  shape.context = positive("llama.context_length");
  shape.norm_epsilon = file.real("llama.attention.layer_norm_rms_epsilon");
  shape.rope_theta = file.real("llama.rope.freq_base");
  require(shape.width % shape.heads == 0 && shape.heads % shape.kv_heads == 0, file.path(),
          ": the model is corrupt: width ", shape.width, ", ", shape.heads, " heads, ",
          shape.kv_heads, " kv heads");
  shape.head_dim = shape.width / shape.heads;
  require(file.integer("llama.rope.dimension_count") == shape.head_dim, file.path(),
          ": rotary dimensions other than the head's ", shape.head_dim, " are not supported");
  require(!file.has("llama.rope.scaling.type") && !file.has_tensor("rope_freqs.weight"),
          file.path(), ": scaled RoPE is not supported");
  require(!file.has_tensor("output.weight"), file.path(),
          ": an output projection apart from the embedding is not supported");
  return shape;
}

llama_weights load_weights(const gguf_file& file) {
  llama_weights weights;
  weights.shape = read_shape(file);
  const llama_shape& shape = weights.shape;
  weights.embedding = read_matrix(file, {{"token_embd.weight", shape.vocabulary}}, shape.width);
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    weights.layers.push_back(read_layer(file, shape, i));
  }
  weights.output_norm = read_matrix(file, {{"output_norm.weight", 1}}, shape.width);
  weights.name = file.text("general.name");
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()),
                               file.bytes().size());
  weights.fingerprint = std::to_string(bytes.size()) + "-" + std::to_string(fnv1a(bytes));
  return weights;
}

}  // namespace rag
