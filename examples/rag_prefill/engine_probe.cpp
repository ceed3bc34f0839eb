// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Shows the inside of the engine to `verify_against_transformers.py`:
//   engine_probe MODEL tokenize               standard input: texts ended by NUL; prints the tokens
//                                             of each on a line of its own
//   engine_probe MODEL logits TOKENS N FILE   full attention over the tokens in the file TOKENS;
//                                             writes the logits of every position to FILE (fp32,
//                                             row-major) and prints N greedily chosen tokens

#include <algorithm>
#include <blockattn/mask/causal_mask.hpp>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "conversation.hpp"
#include "gguf.hpp"
#include "input_error.hpp"
#include "tokenizer.hpp"
#include "weights.hpp"

namespace {

void print_tokens(std::span<const rag::token> tokens) {
  for (const rag::token id : tokens) std::cout << id << ' ';
  std::cout << '\n';
}

void tokenize(const rag::gguf_file& file) {
  const rag::tokenizer words(file);
  for (std::string text; std::getline(std::cin, text, '\0');) print_tokens(words.encode(text));
}

void write_logits(const rag::gguf_file& file,
                  const std::string& tokens_path,
                  int generate,
                  const std::string& logits_path) {
  std::ifstream tokens_file(tokens_path);
  const std::vector<rag::token> prompt{std::istream_iterator<rag::token>(tokens_file), {}};
  rag::require(!prompt.empty(), tokens_path, ": no tokens");
  const rag::llama_weights weights = rag::load_weights(file);
  Eigen::ThreadPool pool(2);
  const blockattn::eigen_executor workers(pool);
  rag::transformer model(weights, workers);
  const auto size = static_cast<blockattn::index_t>(prompt.size());
  rag::conversation chat(model, size + generate);
  std::vector<float> logits = chat.prefill(prompt, blockattn::causal_mask(size));

  std::ofstream out(logits_path, std::ios::binary);
  const rag::matrix states = chat.states();
  for (blockattn::index_t i = 0; i < size; ++i) {
    const std::vector<float> row = model.logits(states.row(i));
    out.write(reinterpret_cast<const char*>(row.data()),
              static_cast<std::streamsize>(row.size() * sizeof(float)));
  }
  rag::require(out.good(), logits_path, ": cannot be written");

  std::vector<rag::token> generated;
  for (int i = 0; i < generate; ++i) {
    generated.push_back(
        static_cast<rag::token>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    logits = chat.extend(std::span(&generated.back(), 1));
  }
  print_tokens(generated);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[1] == "tokenize") {
    tokenize(rag::gguf_file(arguments[0]));
  } else if (arguments.size() == 5 && arguments[1] == "logits") {
    write_logits(rag::gguf_file(arguments[0]), arguments[2], std::stoi(arguments[3]), arguments[4]);
  } else {
    std::cerr << "engine_probe: MODEL tokenize | MODEL logits TOKENS N FILE\n";
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::cerr << "engine_probe: " << error.what() << '\n';
  return EXIT_FAILURE;
}
