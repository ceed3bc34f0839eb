// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>
#include <thread>

#include "input_error.hpp"

namespace rag {

const char* const usage =
    "usage: rag_prefill [options] [DOCUMENT...]\n"
    "Answers a question about text files with a Llama-type model, once with full attention and\n"
    "three times with block attention, and prints what each costs.\n"
    "  --question TEXT  at most 64 tokens\n"
    "  --generate N     most tokens of each answer (default 48)\n"
    "  --order LIST     order of the documents in the last run, for example 3,1,2\n"
    "                   (default: reversed)\n"
    "  --model FILE     a GGUF file of architecture llama (default: what fetch_model.sh got)\n"
    "  --threads N      default: all processors\n"
    "  --smoke          three documents and answers of 8 tokens, a few seconds\n";

namespace {

int parse_number(std::string_view name, std::string_view text, int smallest, int largest) {
  int number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  require(failure == std::errc{} && end == text.data() + text.size() && smallest <= number &&
              number <= largest,
          name, " takes a number from ", smallest, " to ", largest, ", not \"", text, "\"");
  return number;
}

/// "3,1,2" to {2, 0, 1}.
std::vector<std::size_t> parse_order(std::string_view list, std::size_t documents) {
  std::vector<std::size_t> order;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    order.push_back(
        static_cast<std::size_t>(parse_number("--order", list.substr(begin, end - begin), 1,
                                              static_cast<int>(documents))) -
        1);
    begin = end + 1;
  }
  std::vector<std::size_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  const bool repeats = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
  require(!repeats && order.size() == documents, "--order ", list,
          " does not name each of the documents 1 to ", documents, " once");
  return order;
}

std::vector<std::string> default_documents() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(RAG_PREFILL_DATA)) {
    if (entry.path().extension() == ".txt") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

options parse_options(std::span<char* const> arguments) {
  options result;
  result.model = RAG_PREFILL_MODEL;
  result.question = "What did Intel find to be the cause of random bit drops in its chips?";
  result.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::string_view order;
  bool smoke = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view name = arguments[i];
    const auto value = [&]() -> std::string_view {
      require(i + 1 < arguments.size(), name, " takes a value");
      return arguments[++i];
    };
    if (name == "--help" || name == "-h") {
      result.help = true;
    } else if (name == "--question") {
      result.question = value();
    } else if (name == "--generate") {
      result.generate = parse_number(name, value(), 1, 4096);
    } else if (name == "--order") {
      order = value();
    } else if (name == "--model") {
      result.model = value();
    } else if (name == "--threads") {
      result.threads = parse_number(name, value(), 1, 1024);
    } else if (name == "--smoke") {
      smoke = true;
    } else {
      require(!name.starts_with("--"), "unknown option ", name, "; --help lists all");
      result.documents.emplace_back(name);
    }
  }
  if (result.documents.empty()) {
    result.documents = default_documents();
    if (smoke) result.documents.resize(std::min<std::size_t>(3, result.documents.size()));
  }
  if (smoke) result.generate = std::min(result.generate, 8);
  const std::size_t count = result.documents.size();
  if (order.empty()) {
    for (std::size_t i = count; i > 0; --i) result.order.push_back(i - 1);
  } else {
    result.order = parse_order(order, count);
  }
  return result;
}

}  // namespace rag
