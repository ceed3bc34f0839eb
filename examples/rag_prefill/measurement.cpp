// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "measurement.hpp"

#include <algorithm>
#include <blockattn/mask/causal_mask.hpp>
#include <cmath>

#include "conversation.hpp"
#include "input_error.hpp"
#include "progress.hpp"

namespace rag {
namespace {

token most_likely(const std::vector<float>& logits) {
  return static_cast<token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// The answer that begins with `next`, the token after everything that the conversation has.
std::vector<token> answer(const std::string& name,
                          conversation& chat,
                          token next,
                          const answer_limit& limit) {
  progress shown(name + ": answer", limit.tokens);
  std::vector<token> tokens;
  while (next != limit.end_of_turn) {
    tokens.push_back(next);
    shown.advance();
    if (static_cast<ba::index_t>(tokens.size()) == limit.tokens) break;
    next = most_likely(chat.extend(std::span(&next, 1)));
  }
  return tokens;
}

}  // namespace

measurement measure_masked(std::string name,
                           transformer& model,
                           const prompt& question,
                           const ba::attention_mask& mask,
                           const answer_limit& limit) {
  const std::vector<token> tokens = question.tokens();
  measurement result;
  result.tokens_computed = static_cast<ba::index_t>(tokens.size());
  result.visible_pairs = ba::visible_pairs(mask);
  conversation chat(model, result.tokens_computed + limit.tokens);
  token first = 0;
  {
    progress shown(name + ": prefill, layer", model.shape().layers);
    const stopwatch clock;
    result.logits = chat.prefill(tokens, mask, [&] { shown.advance(); });
    first = most_likely(result.logits);
    result.first_token_ms = clock.milliseconds();
  }
  result.answer = answer(name, chat, first, limit);
  result.name = std::move(name);
  return result;
}

measurement measure_cached(std::string name,
                           transformer& model,
                           block_store& store,
                           const prompt& question,
                           const answer_limit& limit) {
  const std::span<const token> final_block = question.final_block();
  measurement result;
  result.tokens_computed = static_cast<ba::index_t>(final_block.size());
  result.visible_pairs =
      ba::visible_pairs(ba::causal_mask(result.tokens_computed, question.layout().tokens()));
  const stopwatch clock;
  conversation chat(model, result.tokens_computed + limit.tokens);
  for (const std::vector<token>& tokens : question.context()) {
    ba::kv::cached_block block = store.find(key_of(model, tokens));
    require(static_cast<bool>(block), name, ": a block of ", tokens.size(),
            " tokens is not in the store");
    chat.append_block(std::move(block));
  }
  result.logits = chat.extend(final_block);
  const token first = most_likely(result.logits);
  result.first_token_ms = clock.milliseconds();
  result.answer = answer(name, chat, first, limit);
  result.name = std::move(name);
  return result;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    // Also takes a NaN, which no comparison would.
    if (!(difference <= largest)) largest = difference;
    if (std::isnan(largest)) break;
  }
  return largest;
}

}  // namespace rag
