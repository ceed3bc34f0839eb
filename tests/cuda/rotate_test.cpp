// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_rows.hpp"
#include "support/forward_errors.hpp"
#include "support/hostile_tensor.hpp"
#include "support/rope_variants.hpp"

using namespace blockattn_test;

namespace {

constexpr auto all_tokens = [](index_t) { return true; };

/// More tokens than a cta takes; next to one another what fp32 and fp64 products lose.
const std::vector<double> positions = {0, 1, -3.5, 16777217, 1000003, 0x1p40 + 1, -0x1p52};

/// The variants that the CPU is tested with, and rows that are read by whole vectors.
std::vector<named_rope> device_variants() {
  std::vector<named_rope> variants = rope_variants();
  for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
    const std::string suffix = pairing == rope_pairing::half_split ? "/half_split" : "/interleaved";
    variants.push_back({"64" + suffix, rope({.head_dim = 64, .pairing = pairing})});
    variants.push_back({"128" + suffix, rope({.head_dim = 128, .pairing = pairing})});
    variants.push_back(
        {"half of 128" + suffix, rope({.head_dim = 128, .rotary_dim = 64, .pairing = pairing})});
    variants.push_back({"256" + suffix, rope({.head_dim = 256, .pairing = pairing})});
    variants.push_back(
        {"256 of 300" + suffix, rope({.head_dim = 300, .rotary_dim = 256, .pairing = pairing})});
  }
  return variants;
}

enum class direction { forward, backward };

/// One rotation against the definition in long double: each value is off by at most one rounding to
/// Out and a few of the arithmetic.
template <class In, class Out>
void check_rotation(
    const rope& rotation, random_source& random, index_t heads, bool hostile, direction way) {
  CAPTURE(heads, hostile, static_cast<int>(way));
  const index_t tokens = std::ssize(positions);
  const index_t dim = rotation.head_dim();
  const auto layout = [&] {
    const tensor_layout any = random_tensor_layout(random);
    return hostile ? any : tensor_layout{.head_major = any.head_major};
  };
  hostile_tensor<In> in(tokens, heads, dim, layout());
  const hostile_tensor<Out> out(tokens, heads, dim, layout());
  in.fill_normal(random, 1, all_tokens);
  const heads_view<const In> from = in.view();
  if (way == direction::forward) {
    cuda_rows{}.rotate(rotation, from, out.view(), positions);
  } else {
    cuda_rows{}.rotate_backward(rotation, from, out.view(), positions);
  }
  CHECK(out.margins_untouched());
  const double sign = way == direction::forward ? 1 : -1;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      std::vector<double> row;
      for (index_t i = 0; i < dim; ++i) row.push_back(load_scalar(from.row(t, h)[i]));
      const auto expected =
          rotated_by_definition(rotation, row, sign * positions[static_cast<std::size_t>(t)],
                                rotation.attention_factor());
      for (index_t i = 0; i < dim; ++i) {
        const double exact = expected[static_cast<std::size_t>(i)];
        const double actual = load_scalar(out.view().row(t, h)[i]);
        const double largest_term = 5 * 1.2;  // normal values times m
        CAPTURE(t, h, i, exact, actual);
        REQUIRE(std::abs(actual - exact) <=
                unit_roundoff<Out>() * std::abs(exact) + 4 * 0x1p-24 * largest_term + 0x1p-25);
      }
    }
  }
}

}  // namespace

TEST_CASE("cuda::rotate and rotate_backward are the definition, for every variant and storage") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(520);
  CAPTURE(seed);
  random_source random(seed);
  for (const auto& [name, rotation] : device_variants()) {
    CAPTURE(name);
    for (const bool hostile : {true, false}) {
      for (const direction way : {direction::forward, direction::backward}) {
        check_rotation<float, float>(rotation, random, 2, hostile, way);
        check_rotation<float, bfloat16>(rotation, random, 3, hostile, way);
        check_rotation<bfloat16, float16>(rotation, random, 1, hostile, way);
        check_rotation<bfloat16, bfloat16>(rotation, random, 3, hostile, way);
      }
    }
  }
  // More heads than a cta takes.
  const rope rotation({.head_dim = 32});
  check_rotation<bfloat16, bfloat16>(rotation, random, 32, false, direction::forward);
  check_rotation<bfloat16, bfloat16>(rotation, random, 33, false, direction::forward);
  check_rotation<float, float>(rotation, random, 70, true, direction::backward);
}

TEMPLATE_TEST_CASE(
    "cuda::rotate in place gives the bits of out of place", "", float, bfloat16, float16) {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(521);
  CAPTURE(seed);
  random_source random(seed);
  const index_t tokens = std::ssize(positions);
  for (const auto& [name, rotation] : device_variants()) {
    CAPTURE(name);
    const tensor_layout layout = random_tensor_layout(random);
    hostile_tensor<TestType> rows(tokens, 3, rotation.head_dim(), layout);
    rows.fill_normal(random, 1, all_tokens);
    const hostile_tensor<TestType> out(tokens, 3, rotation.head_dim(), layout);
    const heads_view<const TestType> in = rows.view();
    cuda_rows{}.rotate(rotation, in, out.view(), positions);
    cuda_rows{}.rotate(rotation, rows.view(), positions);
    CHECK(rows.same_bits(out));
    cuda_rows{}.rotate_backward(rotation, in, out.view(), positions);
    cuda_rows{}.rotate_backward(rotation, rows.view(), positions);
    CHECK(rows.same_bits(out));
  }
}

TEST_CASE("cuda::reposition turns without the magnitude, by one delta or by one for each token") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(522);
  CAPTURE(seed);
  random_source random(seed);
  const index_t tokens = std::ssize(positions);
  for (const auto& [name, rotation] : device_variants()) {
    CAPTURE(name);
    const index_t dim = rotation.head_dim();
    const tensor_layout layout = random_tensor_layout(random);
    hostile_tensor<float> one(tokens, 2, dim, layout), each(tokens, 2, dim, layout),
        distinct(tokens, 2, dim, layout);
    random_source values(seed);
    one.fill_normal(values, 1, all_tokens);
    std::vector<double> before;
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t h = 0; h < 2; ++h) {
        const float* const row = one.view().row(t, h);
        before.insert(before.end(), row, row + dim);
        std::copy_n(row, dim, each.view().row(t, h));
        std::copy_n(row, dim, distinct.view().row(t, h));
      }
    }
    const std::vector<double> equal(positions.size(), -12.25);
    cuda_rows{}.reposition(rotation, one.view(), -12.25);
    cuda_rows{}.reposition(rotation, each.view(), std::span<const double>(equal));
    cuda_rows{}.reposition(rotation, distinct.view(), std::span<const double>(positions));
    CHECK(each.same_bits(one));
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t h = 0; h < 2; ++h) {
        const auto begin = before.begin() + (t * 2 + h) * dim;
        const auto check = [&](const hostile_tensor<float>& rows, double delta) {
          const auto expected = rotated_by_definition(rotation, {begin, begin + dim}, delta, 1);
          const float* const row = rows.view().row(t, h);
          CHECK(largest_difference({row, row + dim}, expected) <= 2e-6);
        };
        check(one, -12.25);
        check(distinct, positions[static_cast<std::size_t>(t)]);
      }
    }
  }
}

TEST_CASE("cuda::rotate takes no tokens and no heads") {
  if (skips_without_device()) return;
  const rope rotation({.head_dim = 4});
  const std::vector<double> none, one = {1};
  const auto rows = [](index_t tokens, index_t heads) {
    return token_major<float>(nullptr, tokens, heads, 4);
  };
  CHECK_NOTHROW(cuda_rows{}.rotate(rotation, rows(0, 2), none));
  CHECK_NOTHROW(cuda_rows{}.rotate(rotation, rows(1, 0), one));
  CHECK_NOTHROW(cuda_rows{}.reposition(rotation, rows(0, 1), 1.0));
}

TEST_CASE("cuda: rotations that do not fit are refused in a sentence") {
  const rope rotation({.head_dim = 4});
  const cuda_rows call{.on_device = false};
  std::vector<float> data(16, 1);
  const auto rows = token_major(data.data(), 2, 2, 4);
  const heads_view<const float> read = rows;
  const std::vector<double> two = {1, 2}, one = {1};
  CHECK(sentence_of([&] { call.rotate(rotation, rows, one); }) ==
        "cuda::rotate: 1 positions for 2 tokens");
  CHECK(sentence_of([&] { call.rotate(rotation, read, token_major(data.data(), 2, 1, 4), two); }) ==
        "cuda::rotate: in is (2, 2, 4) but out is (2, 1, 4)");
  CHECK(sentence_of([&] {
          const auto wide = token_major(data.data(), 2, 1, 8);
          call.rotate(rotation, wide, two);
        }) == "cuda::rotate: rows have head_dim 8 but the rope was made for 4");
  CHECK(sentence_of([&] {
          call.rotate_backward(rotation, read, heads_view<float>{data.data(), 2, 2, 4, 0, 4}, two);
        }).starts_with("cuda::rotate_backward: rows of d_in overlap"));
  CHECK(sentence_of([&] { call.rotate_backward(rotation, rows, one); }) ==
        "cuda::rotate_backward: 1 positions for 2 tokens");
  CHECK(sentence_of([&] {
          call.reposition(rotation, rows, std::nan(""));
        }).starts_with("cuda::reposition: delta[0] is nan, must be finite"));
  CHECK(sentence_of([&] { call.reposition(rotation, rows, std::span<const double>(one)); }) ==
        "cuda::reposition: 1 deltas for 2 tokens");
  const rope wide({.head_dim = 258});
  CHECK(sentence_of([&] { call.reposition(wide, token_major<float>(nullptr, 0, 1, 258), 1.0); }) ==
        "cuda::reposition: rotary_dim is 258, on a device it is at most 256");
  CHECK(data == std::vector<float>(16, 1));
}
