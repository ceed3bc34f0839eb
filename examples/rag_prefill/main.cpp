// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Retrieval-augmented generation with reusable documents: the same question about the same
// documents, answered with full attention and with block attention.

#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <cstdio>
#include <cstdlib>

#include "block_encoder.hpp"
#include "gguf.hpp"
#include "input_error.hpp"
#include "measurement.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "prompt.hpp"
#include "report.hpp"
#include "tokenizer.hpp"
#include "transformer.hpp"
#include "weights.hpp"

namespace {

/// Cached blocks and a masked prefill compute the same function; fp32 rounding is all that tells
/// them apart: products are added up in another order, and a key is reached by turning the query
/// instead of the key.
constexpr double logit_bound = 1e-3;

/// Encodes every block before the final one, once.
void encode_blocks(rag::transformer& model, rag::block_store& store, const rag::prompt& prompt) {
  const auto count = static_cast<std::int64_t>(prompt.context().size());
  const rag::stopwatch clock;
  {
    rag::progress shown("encoding blocks", count);
    for (const auto& tokens : prompt.context()) {
      // Two equal documents are one block.
      if (!store.find(rag::key_of(model, tokens))) rag::encode_block(model, store, tokens);
      shown.advance();
    }
  }
  const auto counters = store.counters();
  std::printf("encoded once: %lld blocks, %s tokens, %.0f MiB of keys and values, %.0f ms\n",
              static_cast<long long>(counters.entries),
              rag::grouped(prompt.layout().tokens() - std::ssize(prompt.final_block())).c_str(),
              static_cast<double>(counters.retained_bytes) / (1 << 20), clock.milliseconds());
}

/// Says on standard error how a row disagrees with its masked prefill.
bool agrees(const rag::report_row& row) {
  const double difference = rag::largest_difference(row.measured.logits, row.masked_prefill.logits);
  const bool close = difference <= logit_bound;
  const bool same_answer = row.measured.answer == row.masked_prefill.answer;
  if (!close) {
    std::fprintf(stderr, "rag_prefill: %s: logits differ by %.2e, more than %.0e\n",
                 row.measured.name.c_str(), difference, logit_bound);
  }
  if (!same_answer) {
    std::fprintf(stderr, "rag_prefill: %s: the answer is not that of the masked prefill\n",
                 row.measured.name.c_str());
  }
  return close && same_answer;
}

bool run(const rag::options& options) {
  const rag::gguf_file file(options.model);
  const rag::llama_shape shape = rag::read_shape(file);
  const rag::tokenizer words(file);
  const std::vector<rag::document> documents = rag::read_documents(options.documents);
  const rag::prompt prompt = rag::make_prompt(words, documents, options.question);
  const rag::prompt other_order = rag::reordered(prompt, options.order);
  const auto layout = prompt.layout();
  rag::require(layout.tokens() + options.generate <= shape.context, "the prompt has ",
               layout.tokens(), " tokens and the answer up to ", options.generate,
               ", but the model was trained for a context of ", shape.context);

  const rag::llama_weights weights = [&] {
    const rag::progress shown("unpacking the model", 1);
    return rag::load_weights(file);
  }();
  Eigen::ThreadPool pool(options.threads);
  const rag::ba::eigen_executor workers(pool);
  rag::transformer model(weights, workers);
  std::printf("model: %s, %lld layers, fp32, %d threads\n", weights.name.c_str(),
              static_cast<long long>(shape.layers), options.threads);
  std::printf("prompt: %zu documents, %s tokens; final block: %td tokens\nquestion: %s\n",
              documents.size(), rag::grouped(layout.tokens()).c_str(),
              std::ssize(prompt.final_block()), options.question.c_str());
  std::fflush(stdout);

  // Ample: 45 KiB of keys and values for a token make 360 MiB for a full context.
  rag::block_store store({.byte_budget = rag::ba::index_t{4} << 30});
  encode_blocks(model, store, prompt);

  const rag::answer_limit limit = {.tokens = options.generate, .end_of_turn = words.end_of_turn()};
  const rag::measurement full = rag::measure_masked("full attention", model, prompt,
                                                    rag::ba::causal_mask(layout.tokens()), limit);
  const rag::measurement masked =
      rag::measure_masked("block attention, one masked prefill", model, prompt,
                          rag::ba::block_attention_mask(layout), limit);
  const rag::measurement other_masked =
      rag::measure_masked("block attention, masked, documents reordered", model, other_order,
                          rag::ba::block_attention_mask(other_order.layout()), limit);
  const auto before = store.counters();
  const rag::measurement cached =
      rag::measure_cached("block attention, documents cached", model, store, prompt, limit);
  const rag::measurement other_cached = rag::measure_cached(
      "block attention, cached documents reordered", model, store, other_order, limit);
  const auto after = store.counters();

  const rag::report_row rows[] = {
      {full, masked}, {masked, masked}, {cached, masked}, {other_cached, other_masked}};
  std::printf("\n");
  rag::print_table(rows);
  std::printf("\nblocks found in the store by the cached runs: %lld of %lld\n",
              static_cast<long long>(after.hits - before.hits),
              static_cast<long long>(after.hits - before.hits + after.misses - before.misses));
  std::printf(
      "cached runs must match a masked prefill of their order: same answer, logits within %.0e\n",
      logit_bound);
  rag::print_answers(rows, words);
  std::printf(
      "\nThe model was never taught block attention: its documents have not seen one another or\n"
      "the instruction, so block answers may be poor. Block distillation is what mends that.\n");
  // Both, so that each says what it found.
  const bool first = agrees(rows[2]);
  const bool second = agrees(rows[3]);
  return first && second;
}

}  // namespace

int main(int argc, char** argv) try {
  const rag::options options =
      rag::parse_options(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
  if (options.help) {
    std::fputs(rag::usage, stdout);
    return EXIT_SUCCESS;
  }
  return run(options) ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::fprintf(stderr, "rag_prefill: %s\n", error.what());
  return EXIT_FAILURE;
}
