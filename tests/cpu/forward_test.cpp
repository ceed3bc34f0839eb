// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>
#include <blockattn/cpu/tile_shape.hpp>

#include "cpu/cpu_backend.hpp"
#include "support/example_cases.hpp"
#include "support/forward_oracle.hpp"

using namespace blockattn;
using namespace blockattn_test;

namespace {

template <class T>
void check_plain(const attention_case& c) {
  check_forward_case<T, T, T, T>(cpu_backend{}, c);
}

}  // namespace

// Each test draws its own calls. A backend's arithmetic depends on the storage types through three
// questions: all bf16 (multiplied as pairs), V in the accumulator type (read in place), and which
// conversions load and store.

TEST_CASE("cpu::forward equals the reference in fp32") {
  check_random_cases<float, float, float, float>(cpu_backend{}, 1000, 60);
}

TEST_CASE("cpu::forward equals the reference in fp64") {
  check_random_cases<double, double, double, double>(cpu_backend{}, 2000, 30);
}

TEST_CASE("cpu::forward equals the reference in bf16") {
  check_random_cases<bfloat16, bfloat16, bfloat16, bfloat16>(cpu_backend{}, 3000, 50);
}

TEST_CASE("cpu::forward equals the reference in Eigen's bf16 with fp32 output") {
  check_random_cases<Eigen::bfloat16, Eigen::bfloat16, Eigen::bfloat16, float>(cpu_backend{}, 4000,
                                                                               20);
}

TEST_CASE("cpu::forward equals the reference with fp32 queries over an fp16 cache") {
  check_random_cases<float, float16, float16, float>(cpu_backend{}, 5000, 20);
}

TEST_CASE("cpu::forward equals the reference with four storage types") {
  check_random_cases<bfloat16, float16, float, Eigen::half>(cpu_backend{}, 6000, 20);
}

TEST_CASE("cpu::forward equals the reference around vector and tile widths") {
  for (const index_t n : {1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257}) {
    const tile_shape shape = cpu::tile_shape_for<float>(16);
    check_plain<float>(plain_case(causal_mask(n), shape, 16));
    check_plain<float>(plain_case(full_mask(3, n), shape, 16));
    check_plain<float>(plain_case(full_mask(n, 3), shape, 16));
    check_plain<bfloat16>(plain_case(causal_mask(n), shape, 16));
    // Without the first and the last key: every key range starts and ends inside a panel.
    const slice inner = {.queries = {0, n}, .keys = {1, std::max<index_t>(1, n - 1)}};
    const auto mask = attention_mask::from_disjoint_slices(n, n, {inner});
    check_plain<float>(plain_case(mask, shape, 16));
    check_plain<bfloat16>(plain_case(mask, shape, 16));
    check_plain<double>(plain_case(mask, {32, 32}, 8));
  }
}

TEST_CASE("cpu::forward equals the reference for every head dim") {
  for (index_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    attention_case c = plain_case(causal_mask(19), {8, 16}, head_dim);
    c.value_dim = 264 - head_dim;
    check_plain<float>(c);
    check_plain<bfloat16>(c);
    check_plain<double>(c);
  }
}

TEST_CASE("cpu::forward equals the reference for every tile shape") {
  const attention_mask mask = block_attention_mask(layout_of({17, 1, 40, 0, 9, 33}));
  for (const index_t queries : {1, 2, 5, 6, 7, 8, 9, 16, 33, 100}) {
    for (const index_t keys : {1, 3, 15, 16, 17, 31, 32, 33, 64, 100}) {
      check_plain<float>(plain_case(mask, {queries, keys}, 24));
      check_plain<bfloat16>(plain_case(mask, {queries, keys}, 24));
    }
  }
}
