// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <string>
#include <vector>

#include "gguf.hpp"

namespace rag {

/// Activations and weights: fp32, row-major, one token or one output per row.
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_vector = Eigen::Matrix<float, 1, Eigen::Dynamic, Eigen::RowMajor>;

/// The sizes of a Llama-type model.
struct llama_shape {
  std::int64_t layers = 0;
  std::int64_t width = 0;  ///< of the residual stream
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t ffn_width = 0;
  std::int64_t vocabulary = 0;
  std::int64_t context = 0;  ///< tokens that the model was trained for
  double norm_epsilon = 0;
  double rope_theta = 0;

  /// One token's queries, keys and values side by side: (heads + 2 kv_heads) * head_dim.
  std::int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
};

/// Matrices are (outputs, inputs). Those with the same input are stacked, so that one product makes
/// all their outputs.
struct layer_weights {
  row_vector attention_norm;  ///< (width)
  matrix qkv;                 ///< (qkv_width, width): queries, then keys, then values
  matrix attention_output;    ///< (width, heads * head_dim)
  row_vector ffn_norm;        ///< (width)
  matrix gate_up;             ///< (2 ffn_width, width): gate, then up
  matrix down;                ///< (width, ffn_width)
};

/// A Llama-type model in fp32.
struct llama_weights {
  llama_shape shape;
  matrix embedding;  ///< (vocabulary, width); also the output projection (tied)
  std::vector<layer_weights> layers;
  row_vector output_norm;   ///< (width)
  std::string name;         ///< what the file calls the model
  std::string fingerprint;  ///< equal for equal files; part of every cached block's key
};

/// The sizes of a model of architecture "llama". Refuses in a sentence what this example does not
/// compute: other architectures, scaled or partial RoPE, an untied output projection.
llama_shape read_shape(const gguf_file& file);

/// Unpacks the model that `read_shape` accepts.
llama_weights load_weights(const gguf_file& file);

}  // namespace rag
