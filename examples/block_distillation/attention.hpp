// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/backward.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/tile_shape.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <blockattn/layout/positions.hpp>
#include <blockattn/plan/make_tile_plan.hpp>
#include <blockattn/rope/rope.hpp>
#include <blockattn/rope/rotate.hpp>
#include <blockattn/rope/rotate_backward.hpp>
#include <vector>

#include "parameters.hpp"

namespace distillation {

/// The token axis that a model runs over: all sequences of a batch side by side, with or without
/// sink tokens, and who sees whom on it. One plan serves all layers, heads and both directions.
template <class T>
struct token_axis {
  token_axis(ba::block_layout axis_layout, const ba::attention_mask& mask, const model_shape& shape)
      : layout(std::move(axis_layout)),
        positions(ba::global_positions(layout)),
        plan(ba::make_tile_plan(
            mask, ba::cpu::tile_shape_for<T>(shape.head_dim), {.transposed = true})) {}

  ba::index_t tokens() const { return layout.tokens(); }

  ba::block_layout layout;
  std::vector<double> positions;  ///< (tokens) for RoPE: the count within the sequence
  ba::tile_plan plan;
};

/// The heads of one fused (tokens, qkv_width) matrix, read and written in place.
template <class T>
struct fused_heads {
  matrix<T>& qkv;
  const model_shape& shape;

  ba::heads_view<T> queries() const { return heads(0, shape.heads); }
  ba::heads_view<T> keys() const { return heads(shape.heads, shape.kv_heads); }
  ba::heads_view<T> values() const { return heads(shape.heads + shape.kv_heads, shape.kv_heads); }
  /// Queries and keys are neighbours: one view rotates both.
  ba::heads_view<T> rotated() const { return heads(0, shape.heads + shape.kv_heads); }

 private:
  ba::heads_view<T> heads(ba::index_t first, ba::index_t count) const {
    return {qkv.data() + first * shape.head_dim,
            qkv.rows(),
            count,
            shape.head_dim,
            shape.qkv_width(),
            shape.head_dim};
  }
};

}  // namespace distillation
