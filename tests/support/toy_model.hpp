// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/rope/reposition.hpp>

#include "support/plain_tensors.hpp"

namespace blockattn_test {

/// A transformer without its feed-forward parts: x += attention(x Wq, x Wk, x Wv) for each layer,
/// queries and keys rotated. Enough for what spans layers: who depends on whom, and caches.
template <class T>
class toy_model {
 public:
  static constexpr plain_sizes sizes = {
      .query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 16};
  static constexpr index_t width = sizes.query_heads * sizes.head_dim;  ///< of a row of x
  static constexpr index_t kv_width = sizes.kv_heads * sizes.head_dim;

  /// Keys (rotated) and values that each layer computed for some tokens.
  struct cache {
    std::vector<std::vector<T>> k, v;  ///< (layers), each (tokens, kv_width)
  };

  toy_model(random_source& random, const rope& rotation, std::size_t layers)
      : rotation_(rotation), layers_(layers) {
    for (layer& l : layers_) {
      l.q = random_matrix(random, width);
      l.k = random_matrix(random, kv_width);
      l.v = random_matrix(random, kv_width);
    }
  }

  /// Runs `x` (tokens, width) at `positions` through all layers. The keys of each layer are those
  /// of `past` followed by the tokens' own, which are added to it; the mask is over both.
  template <class Backend>
  std::vector<T> run(const Backend& backend,
                     std::vector<T> x,
                     const std::vector<double>& positions,
                     const attention_mask& mask,
                     cache& past) const {
    past.k.resize(layers_.size());
    past.v.resize(layers_.size());
    const auto tokens = std::ssize(positions);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      std::vector<T> q = product(x, layers_[l].q, width);
      std::vector<T> k = product(x, layers_[l].k, kv_width);
      const std::vector<T> v = product(x, layers_[l].v, kv_width);
      rotate(rotation_, token_major(q.data(), tokens, sizes.query_heads, sizes.head_dim),
             positions);
      rotate(rotation_, token_major(k.data(), tokens, sizes.kv_heads, sizes.head_dim), positions);
      past.k[l].insert(past.k[l].end(), k.begin(), k.end());
      past.v[l].insert(past.v[l].end(), v.begin(), v.end());
      const plain_outputs<T> attended =
          run_forward(backend, plain_inputs<T>{sizes, q, past.k[l], past.v[l]}, mask);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += attended.o[i];
    }
    return x;
  }

  /// Adds cached tokens, moved by `shift` positions, to another cache.
  void append_moved(cache from, double shift, cache& to) const {
    to.k.resize(layers_.size());
    to.v.resize(layers_.size());
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      reposition(rotation_,
                 token_major(from.k[l].data(), std::ssize(from.k[l]) / kv_width, sizes.kv_heads,
                             sizes.head_dim),
                 shift);
      to.k[l].insert(to.k[l].end(), from.k[l].begin(), from.k[l].end());
      to.v[l].insert(to.v[l].end(), from.v[l].begin(), from.v[l].end());
    }
  }

 private:
  struct layer {
    std::vector<T> q, k, v;  ///< (width, columns)
  };

  static std::vector<T> random_matrix(random_source& random, index_t columns) {
    std::vector<T> matrix = random.normal_values<T>(width * columns);
    for (T& value : matrix) value /= std::sqrt(static_cast<T>(width));
    return matrix;
  }

  /// x (tokens, width) times a (width, columns) matrix, row by row: a row depends on no other.
  static std::vector<T> product(const std::vector<T>& x,
                                const std::vector<T>& matrix,
                                index_t columns) {
    const index_t tokens = std::ssize(x) / width;
    std::vector<T> result(static_cast<std::size_t>(tokens * columns), T(0));
    for (index_t i = 0; i < tokens; ++i) {
      for (index_t t = 0; t < width; ++t) {
        const T factor = x[static_cast<std::size_t>(i * width + t)];
        for (index_t c = 0; c < columns; ++c) {
          result[static_cast<std::size_t>(i * columns + c)] +=
              factor * matrix[static_cast<std::size_t>(t * columns + c)];
        }
      }
    }
    return result;
  }

  const rope& rotation_;
  std::vector<layer> layers_;
};

}  // namespace blockattn_test
