// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/blockattn.hpp>
#include <span>

/// \file
/// What the ```cpp fragments of the pages take for granted: the tensors of an engine, under the names
/// that all pages use. Fragments are compiled and never run, so nothing here is defined.

namespace docs {

namespace ba = blockattn;

// Sizes.
extern const ba::index_t tokens, query_heads, kv_heads, head_dim, token_stride, head_stride, layer;

// Tensors of a call, and their gradients.
extern ba::heads_view<float> q, k, v, o, d_o, d_q, d_k, d_v;
extern ba::lse_view<float> lse;
extern const ba::float16 *keys, *values;

// Who sees whom.
extern const ba::block_layout layout;
extern const ba::tile_plan plan;

// Where work runs, and its scratch memory.
extern ba::serial_executor workers;
extern const std::span<std::byte> memory;

// Training.
extern const std::uint64_t step;
extern ba::logits_view<float> teacher, student;
extern const std::span<const float> weights;

// Serving.
extern ba::kv::block_store<> store;
extern const ba::kv::block_key key;
extern const ba::kv::block_shape shape;
extern const ba::rope rope;

}  // namespace docs
