// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <cstdio>

namespace rag {

void print_table(std::span<const report_row> rows) {
  std::printf("%-45s %9s %15s %9s %14s %14s\n", "", "tokens", "first token", "", "visible",
              "max |diff.| of");
  std::printf("%-45s %9s %15s %9s %14s %14s\n", "", "computed", "ms", "speed-up", "pairs",
              "last logits");
  for (const report_row& row : rows) {
    const measurement& m = row.measured;
    const double speed_up = rows.front().measured.first_token_ms / m.first_token_ms;
    std::printf("%-45s %9s %15.1f %8.1fx %14s ", m.name.c_str(), grouped(m.tokens_computed).c_str(),
                m.first_token_ms, speed_up, grouped(m.visible_pairs).c_str());
    if (&m == &row.masked_prefill) {
      std::printf("%14s\n", "(reference)");
    } else {
      std::printf("%14.2e\n", largest_difference(m.logits, row.masked_prefill.logits));
    }
  }
}

void print_answers(std::span<const report_row> rows, const tokenizer& words) {
  for (const report_row& row : rows) {
    std::printf("\n%s:\n  %s\n", row.measured.name.c_str(),
                words.decode(row.measured.answer).c_str());
  }
}

std::string grouped(ba::index_t number) {
  std::string digits = std::to_string(number);
  for (auto place = static_cast<std::ptrdiff_t>(digits.size()) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<std::size_t>(place), 1, ',');
  }
  return digits;
}

}  // namespace rag
