// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// The three files that an engine takes over (masked_attention.hpp, encode_block.hpp,
// cached_prompt.hpp), around a stand-in for a model: the answer over cached documents is that of
// one masked prefill, in any order of the documents.

#include <blockattn/blockattn.hpp>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "cached_prompt.hpp"
#include "encode_block.hpp"
#include "masked_attention.hpp"

namespace ba = blockattn;

constexpr ba::index_t layers = 3, heads = 4, key_heads = 2, head_dim = 16, width = heads * head_dim;
const ba::rope rope({.head_dim = head_dim});
const ba::serial_executor workers;
using tokens = std::vector<std::int32_t>;
using rows = std::vector<float>;

/// Every layer rotates and attends, and adds the result to its states. Returns those of the last
/// token. `attend(layer, attention_inputs)` is what the three files are about.
template <class Attend>
rows run(const tokens& ids, ba::index_t position, const Attend& attend) {
  rows states, attended(ids.size() * width);
  for (const std::int32_t id : ids)
    for (int i = 0; i < width; ++i) states.push_back(std::sin(float(id * (i + 1))));
  std::vector<double> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<double>(position));
  for (ba::index_t layer = 0; layer < layers; ++layer) {
    rows q = states, k = states;
    const ba::index_t count = std::ssize(ids);
    const auto view = [&](rows& r, ba::index_t n) {  // the first n heads of each token
      return ba::heads_view<float>{r.data(), count, n, head_dim, width, head_dim};
    };
    ba::rotate(rope, view(q, heads), positions);
    ba::rotate(rope, view(k, key_heads), positions);
    attend(layer, rag::attention_inputs{.q = view(q, heads),
                                        .k = view(k, key_heads),
                                        .v = view(states, key_heads),
                                        .o = view(attended, heads)});
    for (std::size_t i = 0; i < states.size(); ++i) states[i] += attended[i];
  }
  return {states.end() - width, states.end()};
}

rows masked(const std::vector<tokens>& documents, const tokens& question) {
  tokens all;
  std::vector<ba::index_t> lengths;
  for (const tokens& document : documents) {
    all.insert(all.end(), document.begin(), document.end());
    lengths.push_back(std::ssize(document));
  }
  all.insert(all.end(), question.begin(), question.end());
  const auto layout =
      ba::block_layout::from_sequence({.context = lengths, .final_block = std::ssize(question)});
  rag::masked_attention attention(ba::block_attention_mask(layout), head_dim);
  return run(all, 0, [&](ba::index_t, const auto& in) { attention(in, workers); });
}

rows cached(const std::vector<tokens>& documents, const tokens& question, rag::block_store& store) {
  rag::cached_prompt prompt(layers, key_heads, head_dim, std::ssize(question));
  for (const tokens& document : documents) {
    const ba::kv::block_key key(
        {.tokens = document, .model_fingerprint = "sines", .ropes = {&rope, 1}});
    ba::kv::cached_block block = store.find(key);
    if (!block)
      block = rag::encode_block(store, key,
                                {layers, key_heads, std::ssize(document), head_dim, head_dim},
                                workers, [&](const auto& attend) { run(document, 0, attend); });
    prompt.append_block(std::move(block));
  }
  return run(question, prompt.position(),
             [&](ba::index_t layer, const auto& in) { prompt.attend(layer, in, rope, workers); });
}

int main() {
  const tokens a = {1, 2, 3, 4, 5, 6, 7}, b = {8, 9, 10}, question = {11, 12};
  rag::block_store store({.byte_budget = 1 << 20});
  for (const std::vector<tokens>& order :
       {std::vector{a, b}, std::vector{b, a}, std::vector{b, a, b}}) {
    const rows expected = masked(order, question), found = cached(order, question, store);
    float difference = 0;
    for (std::size_t i = 0; i < found.size(); ++i)
      difference = std::max(difference, std::abs(found[i] - expected[i]));
    std::printf("%d blocks in the store, %s\n", int(store.counters().entries),
                difference < 1e-4F ? "equal to a masked prefill" : "different");
  }
}

// Output:
// 2 blocks in the store, equal to a masked prefill
// 2 blocks in the store, equal to a masked prefill
// 2 blocks in the store, equal to a masked prefill
