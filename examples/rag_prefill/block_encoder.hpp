// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "encode_block.hpp"
#include "transformer.hpp"

namespace rag {

/// The name of a token block in the store: its tokens and everything else that its keys and values
/// depend on.
ba::kv::block_key key_of(const transformer& model, std::span<const token> tokens);

/// Computes a token block alone, at positions 0, 1, ..., and leaves its keys and values in the
/// store. An `input_error` when the store's budget is too small.
ba::kv::cached_block encode_block(transformer& model,
                                  block_store& store,
                                  std::span<const token> tokens);

}  // namespace rag
