// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <thread>

#include "input_error.hpp"

namespace distillation {

const char* const usage =
    "usage: block_distillation [options]\n"
    "Trains a small transformer with full attention, teaches it block attention in several ways,\n"
    "prints what each way keeps of its answers and draws how they learn.\n"
    "  --quick, --smoke      a short run, less than a minute; its numbers mean little\n"
    "  --seeds N             repetitions with other weights and data (default 3, quick: 1)\n"
    "  --threads N           default: all processors; the results do not depend on it\n"
    "  --curves FILE         the drawing (default: block_distillation.svg)\n"
    "  --checkpoint FILE     written on Ctrl-C (default: block_distillation.checkpoint)\n"
    "  --resume              go on from the checkpoint, to the same bits\n"
    "  --stop-after-steps N  act as if Ctrl-C were pressed after N training steps\n"
    "  --check-gradients     compare the gradient of a small model with finite differences\n";

namespace {

template <class Number>
Number parse_number(std::string_view name, std::string_view text, Number smallest, Number largest) {
  Number number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  require(failure == std::errc{} && end == text.data() + text.size() && smallest <= number &&
              number <= largest,
          name, " takes a number from ", smallest, " to ", largest, ", not \"", text, "\"");
  return number;
}

std::string parse_path(std::string_view name, std::string_view text) {
  require(!text.empty(), name, " takes the path of a file, not \"\"");
  return std::string(text);
}

}  // namespace

options parse_options(std::span<char* const> arguments) {
  options result;
  result.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int seeds = 0;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view name = arguments[i];
    const auto value = [&]() -> std::string_view {
      require(i + 1 < arguments.size(), name, " takes a value");
      return arguments[++i];
    };
    if (name == "--help" || name == "-h") {
      result.help = true;
    } else if (name == "--quick" || name == "--smoke") {
      result.quick = true;
    } else if (name == "--seeds") {
      seeds = parse_number(name, value(), 1, 100);
    } else if (name == "--threads") {
      result.threads = parse_number(name, value(), 1, 1024);
    } else if (name == "--curves") {
      result.curves = parse_path(name, value());
    } else if (name == "--checkpoint") {
      result.checkpoint = parse_path(name, value());
    } else if (name == "--resume") {
      result.resume = true;
    } else if (name == "--stop-after-steps") {
      result.stop_after_steps = parse_number(name, value(), 0L, 1'000'000'000L);
    } else if (name == "--check-gradients") {
      result.check_gradients = true;
    } else {
      require(false, "unknown option ", name, "; --help lists all");
    }
  }
  result.seeds = seeds > 0 ? seeds : result.quick ? 1 : 3;
  return result;
}

}  // namespace distillation
