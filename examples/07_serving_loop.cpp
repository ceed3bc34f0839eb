// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Several threads answer requests over one block store. A document is encoded by whichever request
// meets it first and read in place by all others, in each prompt at a place of its own.

#include <atomic>
#include <blockattn/blockattn.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

namespace ba = blockattn;

constexpr ba::index_t heads = 4, head_dim = 32;
const ba::rope rope({.head_dim = head_dim});
using text = std::vector<std::int32_t>;  // token ids
using rows = std::vector<float>;         // (tokens, heads, head_dim)
using block_store = ba::kv::block_store<>;

enum kind { queries, keys, values };

/// Stands for a model of one layer: rows of a text whose first token stands at `position`.
void project(const text& tokens, kind what, double position, const ba::heads_view<float>& out) {
  for (ba::index_t h = 0; h < heads; ++h)
    for (ba::index_t i = 0; i < head_dim; ++i)
      for (ba::index_t t = 0; const std::int32_t token : tokens)
        out.row(t++, h)[i] = std::sin(float(token + what) * float(1 + h * head_dim + i));
  std::vector<double> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), position);
  if (what != values) ba::rotate(rope, out, positions);
}

/// The block of a document, pinned for as long as the handle lives.
ba::kv::cached_block block_of(const text& document, block_store& store) {
  const ba::kv::block_key key(
      {.tokens = document, .model_fingerprint = "sines", .ropes = {&rope, 1}});
  if (ba::kv::cached_block block = store.find(key)) return block;
  const ba::index_t tokens = std::ssize(document);
  ba::kv::block_draft draft = store.begin_insert(key, {1, heads, tokens, head_dim, head_dim});
  if (!draft) throw std::runtime_error("pinned blocks leave no space: use memory of your own");
  project(document, keys, 0, draft.k<float>(0));  // at the block's own positions 0, 1, ...
  project(document, values, 0, draft.v<float>(0));
  return store.commit(std::move(draft));  // where another thread was first: that one's block
}

/// Attention output of the question's tokens, which stand behind the documents.
rows answer(const std::vector<text>& documents, const text& question, block_store& store) {
  std::vector<ba::kv::cached_block> pins;  // released at the end of the call
  std::vector<ba::key_segment<float>> segments;
  double position = 0;
  for (const text& document : documents) {
    pins.push_back(block_of(document, store));
    segments.push_back(pins.back().segment(0, position));
    position += static_cast<double>(document.size());
  }
  const ba::index_t tokens = std::ssize(question);
  rows q(question.size() * heads * head_dim), k(q.size()), v(q.size()), o(q.size());
  const auto view = [&](rows& r) { return ba::token_major(r.data(), tokens, heads, head_dim); };
  project(question, queries, position, view(q));
  project(question, keys, position, view(k));
  project(question, values, position, view(v));
  const ba::attend_sequence<float> prompt{{0, tokens}, segments, {view(k), view(v)}};
  ba::cpu::attend_blocks({.q = view(q), .o = view(o), .sequences = {&prompt, 1}}, {.rope = &rope});
  return o;
}

int main() {
  const std::vector<text> library = {{1, 2, 3, 4, 5}, {6, 7, 8}, {9, 10, 11, 12}};
  const auto serve = [&](int threads) {
    block_store store({.byte_budget = 1 << 20});
    std::vector<rows> answers(60);
    std::atomic<std::size_t> next = 0;
    const auto work = [&] {  // two documents in some order, then a question of two tokens
      for (std::size_t r = next++; r < answers.size(); r = next++)
        answers[r] = answer({library[r % 3], library[r / 3 % 3]}, {20, int(r)}, store);
    };
    std::vector<std::jthread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back(work);
    pool.clear();  // joins
    const auto count = store.counters();
    std::printf("%d blocks kept, %d bytes pinned\n", int(count.entries), int(count.pinned_bytes));
    return answers;
  };
  const auto alone = serve(1), together = serve(4);
  std::printf("same answers: %s\n", alone == together ? "yes" : "no");
}

// Output:
// 3 blocks kept, 0 bytes pinned
// 3 blocks kept, 0 bytes pinned
// same answers: yes
