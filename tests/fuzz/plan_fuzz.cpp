// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Layouts, sinks, dropout draws and slices from random bytes: what is not refused keeps the law of
// tile plans, pair by pair.

#include <blockattn/layout/pack_sequences.hpp>
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/mask/mask_from_slices.hpp>

#include "fuzz/fuzz_input.hpp"
#include "plan/tile_plan_law.hpp"

using namespace blockattn_test;

namespace {

block_layout layout_from(fuzz_input& input) {
  std::vector<block_layout> parts;
  for (index_t sequences = input.small(0, 2); sequences >= 0; --sequences) {
    std::vector<index_t> lengths(static_cast<std::size_t>(input.small(0, 5)));
    for (index_t& length : lengths) length = input.small(0, 9);
    parts.push_back(block_layout::from_lengths(lengths));
  }
  block_layout layout = pack_sequences(parts);
  if (input.small(0, 7) > 0) layout = with_final_block(layout);
  return with_sink_tokens(layout, {.tokens_per_block = input.small(0, 3),
                                   .placement = static_cast<sink_placement>(input.small(0, 2)),
                                   .sharing = static_cast<sink_sharing>(input.small(0, 2))});
}

attention_mask mask_from(fuzz_input& input) {
  const auto visibility = static_cast<sink_visibility>(input.small(0, 3));
  switch (input.small(0, 3)) {
    case 0:
      return block_attention_mask(layout_from(input), {.sink_visibility = visibility});
    case 1:
      return block_dropout_mask(layout_from(input),
                                {.rule = static_cast<block_dropout_rule>(input.small(0, 4)),
                                 .keep_probability = static_cast<double>(input.small(0, 9)) / 8,
                                 .seed = input.byte(),
                                 .exempt_final_block = input.small(0, 1) == 1,
                                 .sink_visibility = visibility});
    case 2: {
      const attention_mask mask =
          block_attention_mask(layout_from(input), {.sink_visibility = visibility});
      std::vector<index_t> rows, columns;
      for (index_t token = 0; token < mask.query_tokens(); ++token) {
        if (input.small(0, 2) > 0) rows.push_back(token);
        if (input.small(0, 3) > 0) columns.push_back(token);
      }
      return gather_mask(mask, rows, columns);
    }
    default: {
      const index_t queries = input.small(0, 40), keys = input.small(0, 40);
      std::vector<slice> slices(static_cast<std::size_t>(input.small(0, 6)));
      for (slice& s : slices) {
        s = {{input.small(0, 40), input.small(0, 40)}, {input.small(0, 40), input.small(0, 40)}};
        if (input.small(0, 1) == 1) s.lower = input.wild();
        if (input.small(0, 1) == 1) s.upper = input.wild();
      }
      return mask_from_slices(queries, keys, slices);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  fuzz_input input(bytes, size);
  try {
    const attention_mask mask = mask_from(input);
    const tile_shape shape = {input.small(1, 20), input.small(1, 20)};
    const tile_plan plan = make_tile_plan(mask, shape, {.transposed = input.small(0, 3) > 0});
    const std::string broken = broken_law(mask, plan);
    fuzz_require(broken.empty(), broken);
  } catch (const blockattn::error&) {  // refused, which any input may be
  }
  return 0;
}
