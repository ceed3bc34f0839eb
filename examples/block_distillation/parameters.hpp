// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "matrix.hpp"
#include "random.hpp"

namespace distillation {

/// Sizes of a Llama-type transformer: RMS norms, grouped-query attention with RoPE, SwiGLU.
struct model_shape {
  ba::index_t vocabulary = 0;
  ba::index_t sinks = 1;  ///< sink tokens of a block, in models that have them
  ba::index_t layers = 4;
  ba::index_t width = 64;
  ba::index_t heads = 4;
  ba::index_t kv_heads = 2;
  ba::index_t head_dim = 16;
  ba::index_t rotary_dim = 8;  ///< the first values of a head, which RoPE turns
  ba::index_t ffn_width = 128;
  double rope_theta = 1000;

  ba::index_t qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
  friend bool operator==(const model_shape&, const model_shape&) = default;
};

/// A (rows, columns) matrix inside the one vector that holds all parameters.
struct tensor {
  ba::index_t offset = 0;
  ba::index_t rows = 0;
  ba::index_t columns = 0;
};

/// The weights of one layer; linear layers are (outputs, inputs).
struct layer_tensors {
  tensor attention_norm;  ///< (1, width)
  tensor qkv;             ///< (qkv_width, width): query heads, key heads, value heads
  tensor attended;        ///< (width, heads * head_dim)
  tensor ffn_norm;        ///< (1, width)
  tensor gate_up;         ///< (2 ffn_width, width)
  tensor down;            ///< (width, ffn_width)
};

/// Where each weight of a model lies. One flat vector keeps the optimizer, the checkpoint and the
/// sum of gradients free of names.
struct parameter_map {
  explicit parameter_map(const model_shape& shape) {
    const auto take = [this](ba::index_t rows, ba::index_t columns) {
      const tensor taken{size, rows, columns};
      size += rows * columns;
      return taken;
    };
    embedding = take(shape.vocabulary, shape.width);
    sinks = take(shape.sinks, shape.width);
    for (ba::index_t i = 0; i < shape.layers; ++i) {
      layers.push_back({.attention_norm = take(1, shape.width),
                        .qkv = take(shape.qkv_width(), shape.width),
                        .attended = take(shape.width, shape.heads * shape.head_dim),
                        .ffn_norm = take(1, shape.width),
                        .gate_up = take(2 * shape.ffn_width, shape.width),
                        .down = take(shape.width, shape.ffn_width)});
    }
    output_norm = take(1, shape.width);
    output = take(shape.vocabulary, shape.width);
  }

  tensor embedding;  ///< (vocabulary, width)
  tensor sinks;      ///< (sinks, width) embeddings of the sink tokens
  std::vector<layer_tensors> layers;
  tensor output_norm;  ///< (1, width)
  tensor output;       ///< (vocabulary, width)
  ba::index_t size = 0;
};

template <class T>
Eigen::Map<const matrix<T>> view(std::span<const T> values, const tensor& t) {
  return {values.data() + t.offset, t.rows, t.columns};
}

template <class T>
Eigen::Map<matrix<T>> view(std::span<T> values, const tensor& t) {
  return {values.data() + t.offset, t.rows, t.columns};
}

/// Norms start at 1, linear layers at N(0, 1 / inputs), those that write to the residual stream
/// smaller by sqrt(2 layers) (GPT-2's rule), embeddings at N(0, 1).
template <class T>
parameter_vector<T> initial_parameters(const model_shape& shape, std::uint64_t seed) {
  const parameter_map map(shape);
  parameter_vector<T> values(static_cast<std::size_t>(map.size), T(1));
  random_source random(seed);
  const auto fill = [&](const tensor& t, double deviation) {
    for (auto& value : view(std::span<T>(values), t).reshaped()) {
      value = static_cast<T>(deviation * random.normal());
    }
  };
  const auto inputs_rule = [](const tensor& t) {
    return 1 / std::sqrt(static_cast<double>(t.columns));
  };
  const double residual = 1 / std::sqrt(2.0 * static_cast<double>(shape.layers));
  fill(map.embedding, 1);
  fill(map.sinks, 1);
  for (const layer_tensors& layer : map.layers) {
    fill(layer.qkv, inputs_rule(layer.qkv));
    fill(layer.attended, residual * inputs_rule(layer.attended));
    fill(layer.gate_up, inputs_rule(layer.gate_up));
    fill(layer.down, residual * inputs_rule(layer.down));
  }
  fill(map.output, inputs_rule(map.output));
  return values;
}

}  // namespace distillation
