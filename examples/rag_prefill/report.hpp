// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "measurement.hpp"
#include "tokenizer.hpp"

namespace rag {

/// A row of the table: what was measured, and the masked prefill of the same block order, whose
/// logits are the truth for it.
struct report_row {
  const measurement& measured;
  const measurement& masked_prefill;
};

/// Prints the table on standard output; speed-ups are against the first row.
void print_table(std::span<const report_row> rows);

/// Prints the answer of every row.
void print_answers(std::span<const report_row> rows, const tokenizer& words);

/// 1234567 as "1,234,567".
std::string grouped(ba::index_t number);

}  // namespace rag
