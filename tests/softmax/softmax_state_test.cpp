// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/softmax/softmax_state.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();

/// A few roundings of the largest value involved, which is about 1 in these tests.
template <class T>
constexpr double tolerance = 64 * static_cast<double>(std::numeric_limits<T>::epsilon());

template <class T>
bool near(T found, double expected, double scale = 1) {
  return std::abs(static_cast<double>(found) - expected) <=
         tolerance<T> * std::max(scale, std::abs(expected));
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// The keys of one row, and the softmax over any part of them by the definition.
struct scored_keys {
  std::vector<double> scores;
  std::vector<std::vector<double>> values;  ///< (keys)(value_dim)
  std::size_t value_dim;

  scored_keys(random_source& random, index_t keys, index_t dim)
      : value_dim(static_cast<std::size_t>(dim)) {
    for (index_t key = 0; key < keys; ++key) {
      scores.push_back(random.real(-6, 6));
      values.push_back(random.normal_values<double>(dim));
    }
  }

  /// log(sum exp) over the keys with part[key] == which.
  double lse(const std::vector<index_t>& part, index_t which) const {
    double sum = 0;
    for (std::size_t key = 0; key < scores.size(); ++key) {
      if (part[key] == which) sum += std::exp(scores[key]);
    }
    return std::log(sum);
  }
  std::vector<double> o(const std::vector<index_t>& part, index_t which) const {
    std::vector<double> row(value_dim);
    const double total = lse(part, which);
    for (std::size_t key = 0; key < scores.size(); ++key) {
      if (part[key] != which) continue;
      for (std::size_t i = 0; i < value_dim; ++i) {
        row[i] += std::exp(scores[key] - total) * values[key][i];
      }
    }
    return row;
  }
};

/// States that own their rows.
template <class T>
struct owned_states {
  std::vector<std::vector<T>> rows;
  std::vector<softmax_state<T>> states;
  std::vector<T> lse;

  void add(const std::vector<double>& o, double state_lse) {
    rows.emplace_back(o.begin(), o.end());
    lse.push_back(static_cast<T>(state_lse));
    states.clear();
    for (std::size_t p = 0; p < rows.size(); ++p) states.push_back({rows[p], lse[p]});
  }
  owned_states(const scored_keys& keys, const std::vector<index_t>& part, index_t parts) {
    for (index_t p = 0; p < parts; ++p) add(keys.o(part, p), keys.lse(part, p));
  }
};

template <class T>
struct merged {
  std::vector<T> o;
  T lse;
};

template <class T>
merged<T> merge(std::span<const softmax_state<T>> states,
                std::span<const T> lse,
                std::size_t value_dim) {
  std::vector<T> weights(states.size(), infinity<T>);
  merged<T> result = {std::vector<T>(value_dim, infinity<T>), 0};
  result.lse = merge_weights(lse, std::span<T>(weights));
  merge_rows(states, std::span<const T>(weights), std::span<T>(result.o));
  return result;
}

template <class T>
merged<T> merge(const owned_states<T>& owned, std::size_t value_dim) {
  return merge<T>(owned.states, owned.lse, value_dim);
}

std::vector<index_t> random_partition(random_source& random, std::size_t keys, index_t parts) {
  std::vector<index_t> part(keys);
  for (index_t& p : part) p = random.integer(0, parts - 1);
  return part;
}

}  // namespace

TEMPLATE_TEST_CASE("merging any partition gives the joint softmax", "[softmax]", float, double) {
  using T = TestType;
  const std::uint64_t seed = test_seed(11);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 200; ++round) {
    const index_t parts = random.integer(1, 9);
    const scored_keys keys(random, random.integer(1, 40), random.integer(0, 70));
    const std::vector<index_t> everything(keys.scores.size(), 0);
    const auto part = random_partition(random, keys.scores.size(), parts);  // some may be empty
    const owned_states<T> owned(keys, part, parts);

    const merged<T> found = merge(owned, keys.value_dim);
    const std::vector<double> expected = keys.o(everything, 0);
    CAPTURE(round, parts);
    REQUIRE(near(found.lse, keys.lse(everything, 0)));
    for (std::size_t i = 0; i < keys.value_dim; ++i) REQUIRE(near(found.o[i], expected[i]));

    // One after the other, in a random order.
    std::vector<std::size_t> order(static_cast<std::size_t>(parts));
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), random.engine());
    std::vector<T> o(keys.value_dim);
    T lse = -infinity<T>;
    for (const std::size_t p : order) merge_into(std::span<T>(o), lse, owned.states[p]);
    REQUIRE(near(lse, keys.lse(everything, 0)));
    for (std::size_t i = 0; i < keys.value_dim; ++i) REQUIRE(near(o[i], expected[i]));
  }
}

TEMPLATE_TEST_CASE("merging is associative", "[softmax]", float, double) {
  using T = TestType;
  const std::uint64_t seed = test_seed(12);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 100; ++round) {
    const scored_keys keys(random, 20, 5);
    const owned_states<T> owned(keys, random_partition(random, 20, 4), 4);
    const auto pair = [&](std::size_t a, std::size_t b) {
      std::vector<T> o = owned.rows[a];
      T lse = owned.lse[a];
      merge_into(std::span<T>(o), lse, owned.states[b]);
      return merged<T>{o, lse};
    };
    merged<T> tree = pair(0, 1);
    const merged<T> right = pair(2, 3);
    merge_into(std::span<T>(tree.o), tree.lse, softmax_state<T>{right.o, right.lse});
    const merged<T> flat = merge(owned, keys.value_dim);
    CAPTURE(round);
    REQUIRE(near(tree.lse, static_cast<double>(flat.lse)));
    for (std::size_t i = 0; i < 5; ++i) REQUIRE(near(tree.o[i], static_cast<double>(flat.o[i])));
  }
}

TEMPLATE_TEST_CASE("the identity changes no bit and is never read", "[softmax]", float, double) {
  using T = TestType;
  const std::vector<T> row = {T(0.1), T(-3), T(0), T(1e-20)};
  const std::vector<T> garbage(4, std::numeric_limits<T>::quiet_NaN());
  const softmax_state<T> state = {row, T(0.3)};
  const softmax_state<T> nothing = {garbage, -infinity<T>};

  for (const std::vector<softmax_state<T>>& states :
       {std::vector{state}, std::vector{nothing, state}, std::vector{state, nothing, nothing}}) {
    std::vector<T> lse;
    for (const auto& s : states) lse.push_back(s.lse);
    const merged<T> found = merge<T>(states, lse, 4);
    CHECK(same_bits(found.o, row));
    CHECK(found.lse == T(0.3));
  }

  std::vector<T> o = row;
  T lse = T(0.3);
  merge_into(std::span<T>(o), lse, nothing);
  CHECK(same_bits(o, row));
  CHECK(lse == T(0.3));

  std::vector<T> unset = garbage;
  T unset_lse = -infinity<T>;
  merge_into(std::span<T>(unset), unset_lse, state);
  CHECK(same_bits(unset, row));
  CHECK(unset_lse == T(0.3));
}

TEMPLATE_TEST_CASE("states that saw nothing merge into nothing, never NaN",
                   "[softmax]",
                   float,
                   double) {
  using T = TestType;
  CHECK(merged_lse(-infinity<T>, -infinity<T>) == -infinity<T>);
  CHECK(merge_weight(-infinity<T>, -infinity<T>) == 0);
  CHECK(merge_weight(-infinity<T>, T(1)) == 0);
  CHECK(merge_weight(T(1), -infinity<T>) == 1);

  const std::vector<T> garbage(3, std::numeric_limits<T>::quiet_NaN());
  for (const std::size_t count : {0U, 1U, 2U, 5U}) {
    const std::vector<softmax_state<T>> states(count, {garbage, -infinity<T>});
    const std::vector<T> lse(count, -infinity<T>);
    const merged<T> found = merge<T>(states, lse, 3);
    CHECK(found.lse == -infinity<T>);
    CHECK(same_bits(found.o, std::vector<T>(3, T(0))));
  }
}

TEMPLATE_TEST_CASE("large and distant scores neither overflow nor vanish",
                   "[softmax]",
                   float,
                   double) {
  using T = TestType;
  const T huge = T(30000);
  CHECK(merged_lse(huge, huge) == huge + std::log(T(2)));
  CHECK(merged_lse(huge, -huge) == huge);
  CHECK(merged_lse(-huge, huge) == huge);
  CHECK(merged_lse(-huge, -huge) == -huge + std::log(T(2)));
  CHECK(merge_weight(huge, -huge) == 1);
  CHECK(merge_weight(-huge, huge) == 0);
  CHECK(merge_weight(huge, huge) == T(0.5));
  // A small weight keeps its leading digits.
  CHECK(merge_weight(T(-60), T(0)) == Approx(std::exp(-60.0)).epsilon(1e-6).margin(0));

  std::vector<T> lse = {huge, -huge, huge};
  const T total = merge_weights(std::span<const T>(lse), std::span<T>(lse));  // in place
  CHECK(total == huge + std::log(T(2)));
  CHECK(lse == std::vector<T>{T(0.5), T(0), T(0.5)});
}

TEMPLATE_TEST_CASE("weights are the softmax of lse", "[softmax]", float, double) {
  using T = TestType;
  const std::uint64_t seed = test_seed(13);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 100; ++round) {
    std::vector<T> lse(static_cast<std::size_t>(random.integer(1, 12)));
    for (T& value : lse) value = static_cast<T>(random.real(-5, 5));
    std::vector<T> weights(lse.size());
    const T total = merge_weights(std::span<const T>(lse), std::span<T>(weights));
    double sum = 0;
    for (const T value : lse) sum += std::exp(static_cast<double>(value));
    double weight_sum = 0;
    for (std::size_t p = 0; p < lse.size(); ++p) {
      REQUIRE(near(weights[p], std::exp(static_cast<double>(lse[p])) / sum));
      weight_sum += static_cast<double>(weights[p]);
    }
    CAPTURE(round);
    REQUIRE(near(total, std::log(sum)));
    REQUIRE(near(static_cast<T>(weight_sum), 1));
    if (lse.size() == 2) REQUIRE(near(merge_weight(lse[0], lse[1]), double(weights[0])));
  }
}

TEMPLATE_TEST_CASE("APE: context keys weigh Z^(sigma - 1) exp(s)", "[softmax]", float, double) {
  using T = TestType;
  const std::uint64_t seed = test_seed(14);
  CAPTURE(seed);
  random_source random(seed);
  for (const double sigma : {1.0, 0.81, 0.0}) {
    const scored_keys keys(random, 24, 6);
    const auto part = random_partition(random, 24, 2);  // 0 = context, 1 = other
    const owned_states<T> owned(keys, part, 2);
    const double context_lse = keys.lse(part, 0);
    const std::vector<T> lse = {weighted_lse(owned.lse[0], T(sigma), T(0)), owned.lse[1]};
    const merged<T> found = merge<T>(owned.states, lse, 6);

    double normaliser = 0;
    std::vector<double> expected(6);
    for (std::size_t key = 0; key < 24; ++key) {
      const double weight =
          std::exp(keys.scores[key] + (part[key] == 0 ? (sigma - 1) * context_lse : 0));
      normaliser += weight;
      for (std::size_t i = 0; i < 6; ++i) expected[i] += weight * keys.values[key][i];
    }
    CAPTURE(sigma);
    CHECK(near(found.lse, std::log(normaliser)));
    for (std::size_t i = 0; i < 6; ++i) CHECK(near(found.o[i], expected[i] / normaliser));
    if (sigma == 0) {
      CHECK(near(merge_weight(lse[0], lse[1]), 1 / (1 + std::exp(keys.lse(part, 1)))));
    }
  }
}

TEMPLATE_TEST_CASE("Landmark: a block weighs its landmark's logit", "[softmax]", float, double) {
  using T = TestType;
  const std::uint64_t seed = test_seed(15);
  CAPTURE(seed);
  random_source random(seed);
  const scored_keys keys(random, 30, 4);
  const auto part = random_partition(random, 30, 4);  // 0 = own block, 1..3 = earlier blocks
  const owned_states<T> owned(keys, part, 4);
  std::vector<double> logits = {keys.lse(part, 0)};
  std::vector<T> lse = {owned.lse[0]};
  for (std::size_t block = 1; block < 4; ++block) {
    logits.push_back(random.real(-2, 4));
    lse.push_back(weighted_lse(owned.lse[block], T(0), static_cast<T>(logits[block])));
  }
  const merged<T> found = merge<T>(owned.states, lse, 4);

  // g = softmax over own keys and landmarks; a key of block c weighs g_c * softmax within c.
  double normaliser = 0;
  for (const double logit : logits) normaliser += std::exp(logit);
  double weight_sum = 0;
  std::vector<double> expected(4);
  for (std::size_t key = 0; key < 30; ++key) {
    const double within = std::exp(keys.scores[key] - keys.lse(part, part[key]));
    const double weight =
        std::exp(logits[static_cast<std::size_t>(part[key])]) / normaliser * within;
    weight_sum += weight;
    for (std::size_t i = 0; i < 4; ++i) expected[i] += weight * keys.values[key][i];
  }
  CHECK(weight_sum == Approx(1));
  for (std::size_t i = 0; i < 4; ++i) CHECK(near(found.o[i], expected[i]));

  // A logit equal to the block's lse is the ordinary softmax.
  const std::vector<index_t> everything(30, 0);
  for (std::size_t block = 1; block < 4; ++block) {
    lse[block] = weighted_lse(owned.lse[block], T(0), owned.lse[block]);
  }
  const merged<T> plain = merge<T>(owned.states, lse, 4);
  CHECK(near(plain.lse, keys.lse(everything, 0)));
}

TEMPLATE_TEST_CASE("weighted_lse: log-weights", "[softmax]", float, double) {
  using T = TestType;
  CHECK(weighted_lse(T(2), T(1), T(0)) == 2);
  CHECK(weighted_lse(T(2), T(0.5), T(3)) == 4);
  CHECK(weighted_lse(T(2), T(1), -infinity<T>) == -infinity<T>);
  for (const T scale : {T(-1), T(0), T(0.5), T(1)}) {
    CHECK(weighted_lse(-infinity<T>, scale, T(7)) == -infinity<T>);
  }
}

TEMPLATE_TEST_CASE("a sink logit is a key of value zero", "[softmax]", float, double) {
  using T = TestType;
  const std::uint64_t seed = test_seed(16);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 50; ++round) {
    const double lse = random.real(-8, 8);
    const double sink = random.real(-8, 8);
    const auto found = apply_sink_logit(static_cast<T>(lse), static_cast<T>(sink));
    CAPTURE(round, lse, sink);
    REQUIRE(near(found.output_scale, 1 / (1 + std::exp(sink - lse))));
    REQUIRE(near(found.lse, std::log(std::exp(lse) + std::exp(sink)), 8));

    // r equal sinks, one after the other, are one of logit sink + log(r).
    sink_result<T> repeated = {T(1), static_cast<T>(lse)};
    for (int r = 0; r < 3; ++r) {
      const auto step = apply_sink_logit(repeated.lse, static_cast<T>(sink));
      repeated = {repeated.output_scale * step.output_scale, step.lse};
    }
    const auto joined = apply_sink_logit(static_cast<T>(lse), static_cast<T>(sink + std::log(3.0)));
    REQUIRE(near(repeated.output_scale, double(joined.output_scale)));
    REQUIRE(near(repeated.lse, double(joined.lse), 8));
  }
}

TEMPLATE_TEST_CASE("sink logits at the edges", "[softmax]", float, double) {
  using T = TestType;
  const auto nothing_seen = apply_sink_logit(-infinity<T>, T(1.5));
  CHECK(nothing_seen.output_scale == 0);
  CHECK(nothing_seen.lse == T(1.5));

  for (const T lse : {T(0.7), T(-30000), -infinity<T>}) {
    const auto absent = apply_sink_logit(lse, -infinity<T>);
    CHECK(absent.output_scale == 1);
    CHECK(absent.lse == lse);
  }
  const auto drowned = apply_sink_logit(T(-20000), T(20000));
  CHECK(drowned.output_scale == 0);
  CHECK(drowned.lse == T(20000));
}

TEST_CASE("merged rows round once to their storage", "[softmax]") {
  const std::uint64_t seed = test_seed(17);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t value_dim : {0, 1, 15, 16, 17, 31, 32, 33, 64, 65}) {
    const auto dim = static_cast<std::size_t>(value_dim);
    const std::vector<std::vector<bfloat16>> rows = {random.normal_values<bfloat16>(value_dim),
                                                     random.normal_values<bfloat16>(value_dim),
                                                     random.normal_values<bfloat16>(value_dim)};
    const std::vector<float> lse = {0.5F, -1, 0.25F};
    std::vector<softmax_state<float, bfloat16>> states;
    for (std::size_t p = 0; p < 3; ++p) states.push_back({rows[p], lse[p]});
    std::vector<float> weights(3);
    merge_weights(std::span<const float>(lse), std::span<float>(weights));

    const bfloat16 guard = {0x1234};
    std::vector<bfloat16> narrow(dim + 1, guard);
    std::vector<float> wide(dim);
    using state_span = std::span<const softmax_state<float, bfloat16>>;
    merge_rows(state_span(states), std::span<const float>(weights),
               std::span<bfloat16>(narrow).first(dim));
    merge_rows(state_span(states), std::span<const float>(weights), std::span<float>(wide));
    CAPTURE(value_dim);
    for (std::size_t i = 0; i < dim; ++i) {
      double expected = 0;
      for (std::size_t p = 0; p < 3; ++p) {
        expected += static_cast<double>(weights[p]) * static_cast<double>(load_scalar(rows[p][i]));
      }
      bfloat16 rounded;
      store_scalar(rounded, wide[i]);
      REQUIRE(near(wide[i], expected));
      REQUIRE(narrow[i].bits == rounded.bits);
    }
    REQUIRE(narrow[dim].bits == guard.bits);
  }
}

TEST_CASE("a merged row may replace one of its parts", "[softmax]") {
  std::vector<float> a(19, 1.0F);
  const std::vector<float> b(19, 3.0F);
  const std::vector<softmax_state<float>> states = {{a, 0}, {b, 0}};
  const std::vector<float> weights = {0.25F, 0.75F};
  merge_rows(std::span<const softmax_state<float>>(states), std::span<const float>(weights),
             std::span<float>(a));
  CHECK(a == std::vector<float>(19, 2.5F));
}
