// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <string>
#include <vector>

#include "block_encoder.hpp"
#include "prompt.hpp"
#include "transformer.hpp"

namespace rag {

/// What answering one prompt cost and gave.
struct measurement {
  std::string name;
  ba::index_t tokens_computed = 0;  ///< before the first answer token
  ba::index_t visible_pairs = 0;    ///< (query, key) pairs of each layer and head
  double first_token_ms = 0;        ///< from the prompt's tokens to the answer's first one
  std::vector<float> logits;        ///< (vocabulary) of the first answer token
  std::vector<token> answer;        ///< most likely tokens, without the end of turn
};

/// When an answer ends.
struct answer_limit {
  ba::index_t tokens = 0;
  token end_of_turn = 0;
};

/// Computes the whole prompt under `mask`, all tokens at their global positions.
measurement measure_masked(std::string name,
                           transformer& model,
                           const prompt& question,
                           const ba::attention_mask& mask,
                           const answer_limit& limit);

/// Computes the final block only; every other block must be in the store. Looking the blocks up is
/// part of the time.
measurement measure_cached(std::string name,
                           transformer& model,
                           block_store& store,
                           const prompt& question,
                           const answer_limit& limit);

/// max |a - b|; NaN when a difference is NaN.
double largest_difference(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace rag
