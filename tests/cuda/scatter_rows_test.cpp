// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <blockattn/layout/scatter_rows_backward.hpp>
#include <blockattn/layout/sink_tokens.hpp>

#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_rows.hpp"
#include "layout/layout_cases.hpp"
#include "support/forward_errors.hpp"

using namespace blockattn_test;

namespace {

/// A layout of ragged sequences with any kind of sinks, sometimes none.
block_layout random_layout(random_source& random) {
  const bool shared = random.chance(0.4);
  const bool at_end = !shared && random.chance(0.5);
  return with_sink_tokens(
      packed_layout(random_lengths(random)),
      {.tokens_per_block = random.integer(0, 3),
       .placement = at_end ? sink_placement::block_end : sink_placement::block_start,
       .sharing = shared ? sink_sharing::shared : sink_sharing::per_block});
}

/// Values in a vector, not always at its begin: rows of 16 bytes are aligned or not.
template <class T>
class placed_values {
 public:
  placed_values(index_t size, index_t offset)
      : offset_(static_cast<std::size_t>(offset)),
        values_(static_cast<std::size_t>(size) + offset_) {
    std::ranges::fill(std::as_writable_bytes(std::span(values_)), std::byte{0xff});
  }
  /// Small integers: sums of them are exact, in any order.
  placed_values& fill(random_source& random) {
    for (T& value : span()) {
      if constexpr (requires { storage_traits<T>::format; }) {
        store_scalar(value, static_cast<float>(random.integer(-8, 8)));
      } else {
        value = static_cast<T>(random.integer(0, 100));
      }
    }
    return *this;
  }
  std::span<T> span() { return std::span(values_).subspan(offset_); }
  std::span<const T> span() const { return std::span(values_).subspan(offset_); }

  bool operator==(const placed_values& other) const {
    return std::ranges::equal(std::as_bytes(span()), std::as_bytes(other.span()));
  }

 private:
  std::size_t offset_;
  std::vector<T> values_;
};

index_t random_columns(random_source& random) {
  const index_t wide[] = {1, 3, 8, 16, 64, 255, 256, 264, 520};
  return random.chance(0.5) ? random.integer(1, 9) : wide[random.integer(0, 8)];
}

template <class T>
void check_scatter(random_source& random) {
  const block_layout layout = random_layout(random);
  const index_t columns = random_columns(random);
  const index_t offset = random.chance(0.5) ? 0 : random.integer(0, 5);
  const index_t sinks = layout.tokens() - layout.source_tokens();
  const index_t sink_rows = random.chance(0.5) ? layout.sink_options().tokens_per_block : sinks;
  CAPTURE(layout.tokens(), sinks, sink_rows, columns, offset, sizeof(T));
  const auto sources = placed_values<T>(layout.source_tokens() * columns, offset).fill(random);
  const auto sink_values = placed_values<T>(sink_rows * columns, offset).fill(random);
  placed_values<T> found(layout.tokens() * columns, offset), expected = found;
  cuda_rows{}.scatter_rows<T>(layout, sources.span(), sink_values.span(), found.span(), columns);
  scatter_rows(layout, sources.span(), sink_values.span(), expected.span(), columns);
  CHECK(found == expected);

  placed_values<T> back(layout.source_tokens() * columns, offset);
  cuda_rows{}.gather_rows<T>(layout, std::as_const(found).span(), back.span(), columns);
  CHECK(back == sources);
}

template <class DOut, class DSource, class DSinks>
void check_scatter_backward(random_source& random, const block_layout& layout, index_t columns) {
  const index_t offset = random.chance(0.5) ? 0 : random.integer(0, 5);
  const index_t sinks = layout.tokens() - layout.source_tokens();
  index_t sink_rows = random.chance(0.5) ? layout.sink_options().tokens_per_block : sinks;
  if (random.chance(0.1)) sink_rows = 0;
  const index_t source_rows = random.chance(0.1) ? 0 : layout.source_tokens();
  CAPTURE(layout.tokens(), sinks, sink_rows, source_rows, columns, offset);
  const auto d_out = placed_values<DOut>(layout.tokens() * columns, offset).fill(random);
  placed_values<DSource> d_source(source_rows * columns, offset), expected_source = d_source;
  placed_values<DSinks> d_sinks(sink_rows * columns, offset), expected_sinks = d_sinks;
  cuda_rows{}.scatter_rows_backward(layout, d_out.span(), d_source.span(), d_sinks.span(), columns);
  scatter_rows_backward(layout, d_out.span(), expected_source.span(), expected_sinks.span(),
                        columns);
  CHECK(d_source == expected_source);
  CHECK(d_sinks == expected_sinks);
  cuda_rows{}.scatter_rows_backward_accumulate(layout, d_out.span(), d_source.span(),
                                               d_sinks.span(), columns);
  scatter_rows_backward_accumulate(layout, d_out.span(), expected_source.span(),
                                   expected_sinks.span(), columns);
  CHECK(d_source == expected_source);
  CHECK(d_sinks == expected_sinks);

  const auto d_gathered =
      placed_values<DOut>(layout.source_tokens() * columns, offset).fill(random);
  placed_values<DSource> d_rows(layout.tokens() * columns, offset), expected_rows = d_rows;
  cuda_rows{}.gather_rows_backward(layout, d_gathered.span(), d_rows.span(), columns);
  gather_rows_backward(layout, d_gathered.span(), expected_rows.span(), columns);
  CHECK(d_rows == expected_rows);
  cuda_rows{}.gather_rows_backward_accumulate(layout, d_gathered.span(), d_rows.span(), columns);
  gather_rows_backward_accumulate(layout, d_gathered.span(), expected_rows.span(), columns);
  CHECK(d_rows == expected_rows);
}

}  // namespace

TEST_CASE("cuda::scatter_rows and gather_rows equal the CPU's, for rows of any size") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(530);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    check_scatter<std::uint8_t>(random);
    check_scatter<std::int32_t>(random);
    check_scatter<bfloat16>(random);
    check_scatter<double>(random);
  }
}

TEST_CASE("cuda: the adjoints of scatter_rows and gather_rows equal the CPU's") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(531);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    check_scatter_backward<float, float, float>(random, random_layout(random),
                                                random_columns(random));
    check_scatter_backward<bfloat16, bfloat16, float>(random, random_layout(random),
                                                      random_columns(random));
    check_scatter_backward<float16, float, float16>(random, random_layout(random),
                                                    random_columns(random));
  }
  // More sets than warps of a cta.
  for (const index_t blocks : {15, 16, 17, 100}) {
    const auto layout =
        with_sink_tokens(layout_of(std::vector<index_t>(static_cast<std::size_t>(blocks), 2)),
                         {.tokens_per_block = 2});
    check_scatter_backward<float, float, float>(random, layout, 264);
    check_scatter_backward<bfloat16, bfloat16, float>(random, layout, 7);
  }
}

TEST_CASE("cuda: 16-bit gradients of sinks are summed in fp32, with the same bits each time") {
  if (skips_without_device()) return;
  random_source random(test_seed(532));
  const auto layout =
      with_sink_tokens(layout_of(std::vector<index_t>(257, 1)), {.tokens_per_block = 1});
  std::vector<bfloat16> ones(514, bfloat16{0x3f80});
  std::vector<float> sum(1);
  cuda_rows{}.scatter_rows_backward(layout, std::span<const bfloat16>(ones), std::span<bfloat16>(),
                                    std::span(sum), 1);
  CHECK(sum[0] == 257.0F);  // bf16 sums would stop at 256

  const auto d_out = random.normal_values<float>(514 * 40);
  std::vector<float> first(40), again(40);
  for (std::vector<float>* const found : {&first, &again}) {
    cuda_rows{}.scatter_rows_backward(layout, std::span<const float>(d_out), std::span<float>(),
                                      std::span(*found), 40);
  }
  CHECK(first == again);
}

TEST_CASE("cuda: rows of another size are refused with both sizes") {
  const auto layout = with_sink_tokens(layout_of({2, 1}), {.tokens_per_block = 1});
  const cuda_rows call{.on_device = false};
  std::vector<std::int32_t> values(8, 7);
  const auto some = [&](std::size_t count) { return std::span(values).first(count); };
  const auto read = [&](std::size_t count) { return std::span<const std::int32_t>(some(count)); };
  CHECK(sentence_of([&] {
          call.scatter_rows<std::int32_t>(layout, read(4), read(1), some(5), 1);
        }) == "cuda::scatter_rows: source_rows holds 4 elements, must hold 3 rows x 1 columns");
  CHECK(
      sentence_of([&] { call.scatter_rows<std::int32_t>(layout, read(3), read(3), some(5), 1); }) ==
      "cuda::scatter_rows: sink_rows holds 3 elements, must hold 1 rows (one set) or 2 "
      "rows (all sinks) x 1 columns");
  CHECK(sentence_of([&] {
          call.scatter_rows<std::int32_t>(layout, read(3), read(1), some(5), 0);
        }) == "cuda::scatter_rows: columns is 0, must be positive");
  CHECK(sentence_of([&] { call.gather_rows<std::int32_t>(layout, read(5), some(2), 1); }) ==
        "cuda::gather_rows: out holds 2 elements, must hold 3 rows x 1 columns");

  std::vector<float> gradients(8, 7);
  const auto floats = [&](std::size_t count) { return std::span(gradients).first(count); };
  const std::span<const float> d_out = floats(5);
  CHECK(sentence_of([&] { call.scatter_rows_backward(layout, d_out, floats(2), floats(1), 1); }) ==
        "cuda::scatter_rows_backward: d_source_rows holds 2 elements, must hold 3 rows x 1 "
        "columns");
  CHECK(sentence_of([&] {
          call.scatter_rows_backward_accumulate(layout, d_out, floats(3), floats(3), 1);
        }).starts_with("cuda::scatter_rows_backward_accumulate: d_sink_rows holds 3"));
  CHECK(sentence_of([&] { call.gather_rows_backward(layout, d_out, floats(5), 1); }) ==
        "cuda::gather_rows_backward: d_out holds 5 elements, must hold 3 rows x 1 columns");
  CHECK(sentence_of([&] {
          call.gather_rows_backward_accumulate(layout, d_out.first(3), floats(4), 1);
        }).starts_with("cuda::gather_rows_backward_accumulate: d_rows holds 4"));
  CHECK(values == std::vector<std::int32_t>(8, 7));
  CHECK(gradients == std::vector<float>(8, 7));
}
