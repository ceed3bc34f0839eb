// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/merge_backward.hpp>

#include "cpu/cpu_backend.hpp"
#include "support/merge_problem.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn_test;

namespace {

/// sum(d_o . o) + sum(d_lse lse) of a merge, without the lse of rows that see nothing.
double loss(const merge_problem<double>& problem) {
  const merge_sizes& sizes = problem.sizes;
  std::vector<double> o_values(
      static_cast<std::size_t>(sizes.tokens * sizes.heads * sizes.value_dim));
  std::vector<double> lse_values(static_cast<std::size_t>(sizes.tokens * sizes.heads));
  const auto merged = token_major(o_values.data(), sizes.tokens, sizes.heads, sizes.value_dim);
  const auto merged_lse = token_major_lse(lse_values.data(), sizes.tokens, sizes.heads);
  cpu::merge<double>({.states = problem.states,
                      .o = merged,
                      .lse = merged_lse,
                      .sink_logits = problem.sink_logits});
  double sum = 0;
  problem.for_each_row([&](index_t token, index_t head) {
    for (index_t i = 0; i < sizes.value_dim; ++i) {
      sum += merged.row(token, head)[i] * problem.d_o.view().row(token, head)[i];
    }
    const double row_lse = merged_lse.at(token, head);
    if (row_lse != -infinity<double>) sum += row_lse * problem.d_lse.as_lse().at(token, head);
  });
  return sum;
}

/// The derivative of the loss by one of the problem's own numbers.
double difference(const merge_problem<double>& problem, double& at) {
  const double before = at;
  const double step = 1e-5;
  at = before + step;
  const double up = loss(problem);
  at = before - step;
  const double down = loss(problem);
  at = before;
  return (up - down) / (2 * step);
}

/// merge_backward by the workers of a test.
template <class Executor>
struct cpu_workers {
  mutable Executor executor;

  template <class... Types>
  void merge_backward(const merge_backward_arguments<Types...>& arguments) const {
    cpu::merge_backward(arguments, executor);
  }
};

}  // namespace

TEST_CASE("merge_backward agrees with finite differences", "[merge_backward]") {
  const std::uint64_t seed = test_seed(151);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    merge_problem<double> problem(random, {.states = random.integer(0, 4)});
    problem.vary(random);
    CAPTURE(round, problem.sizes.states);
    const auto found = problem.differentiate(cpu_backend{}, random);
    const auto check = [&](double& at, double gradient) {
      // Gradients here are of size 1: the bound is 1e-6 of that.
      CHECK(std::abs(difference(problem, at) - gradient) <= 1e-6);
    };
    problem.for_each_row([&](index_t token, index_t head) {
      for (std::size_t s = 0; s < problem.states.size(); ++s) {
        CAPTURE(token, head, s);
        double& lse = problem.lse[s].as_lse().at(token, head);
        if (lse == -infinity<double>) continue;
        check(lse, found.d_lse[s].as_lse().at(token, head));
        if (problem.states[s].row_log_weights) {
          check(problem.row_log_weights[s].as_lse().at(token, head),
                found.d_row_log_weights[s].as_lse().at(token, head));
        }
        if (problem.states[s].log_weight == -infinity<double>) continue;
        for (index_t i = 0; i < problem.sizes.value_dim; ++i) {
          check(problem.o[s].view().row(token, head)[i], found.d_o[s].view().row(token, head)[i]);
        }
      }
    });
    for (std::size_t head = 0; head < problem.sink_logits.size(); ++head) {
      if (problem.sink_logits[head] == -infinity<double>) continue;
      check(problem.sink_logits[head], found.d_sink_logits[head]);
    }
  }
}

TEST_CASE("merge_backward is the formula, for every storage and size", "[merge_backward]") {
  const std::uint64_t seed = test_seed(152);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t tokens : {0, 1, 15, 16, 17, 37}) {
    for (const index_t value_dim : {0, 1, 15, 16, 17, 31, 32, 33, 64, 100}) {
      const merge_sizes sizes = {random.integer(0, 4), tokens, random.integer(1, 3), value_dim};
      check_merge_backward_formulas<double, double, double>(cpu_backend{}, random, sizes, 1e-14);
      check_merge_backward_formulas<float, float, float>(cpu_backend{}, random, sizes, 4e-6);
      check_merge_backward_formulas<bfloat16, bfloat16, bfloat16>(cpu_backend{}, random, sizes,
                                                                  4e-6);
      check_merge_backward_formulas<float16, float, bfloat16>(cpu_backend{}, random, sizes, 4e-6);
    }
  }
}

TEST_CASE("what the shares lose to one another sums to zero", "[merge_backward]") {
  // sum_s d_w_s + d_sink = d_lse in every row, as the shares sum to one.
  const std::uint64_t seed = test_seed(153);
  CAPTURE(seed);
  random_source random(seed);
  for (const bool with_sinks : {false, true}) {
    merge_problem<double> problem(random, {.states = 4, .tokens = 1, .heads = 5, .value_dim = 24});
    if (with_sinks) problem.sink_logits = {0.5, -1, 2, -infinity<double>, 0};
    const auto found = problem.differentiate(cpu_backend{}, random);
    for (index_t head = 0; head < 5; ++head) {
      double sum = with_sinks ? found.d_sink_logits[static_cast<std::size_t>(head)] : 0;
      for (const auto& d_lse : found.d_lse) sum += d_lse.as_lse().at(0, head);
      CHECK(std::abs(sum - problem.d_lse.as_lse().at(0, head)) <= 1e-13);
    }
  }
}

TEST_CASE("APE and Landmark weights", "[merge_backward]") {
  const std::uint64_t seed = test_seed(154);
  CAPTURE(seed);
  random_source random(seed);
  merge_problem<double> problem(random, {.states = 3, .tokens = 4, .heads = 2, .value_dim = 16});
  problem.states[0].log_weight_scale = 0.81;  // APE's context
  problem.states[1].log_weight_scale = 0;     // a landmark block
  for (const std::size_t s : {0U, 1U}) {
    problem.states[s].row_log_weights = problem.row_log_weights[s].as_lse();
  }
  const auto found = problem.differentiate(cpu_backend{}, random);
  problem.for_each_row([&](index_t token, index_t head) {
    const double d_weight = found.d_row_log_weights[0].as_lse().at(token, head);
    CHECK(found.d_lse[0].as_lse().at(token, head) == 0.81 * d_weight);
    CHECK(found.d_lse[1].as_lse().at(token, head) == 0);
    CHECK(std::abs(found.d_row_log_weights[1].as_lse().at(token, head) -
                   row_formula(problem, token, head).d_weight(problem, 1, token, head)) <= 1e-13);
  });
}

TEST_CASE("backward through a tree of merges is backward through the joint one",
          "[merge_backward]") {
  const std::uint64_t seed = test_seed(155);
  CAPTURE(seed);
  random_source random(seed);
  const merge_sizes sizes = {.states = 3, .tokens = 5, .heads = 2, .value_dim = 20};
  const merge_problem<double> joint(random, sizes);
  const auto expected = joint.differentiate(cpu_backend{}, random);

  merge_sizes two = sizes;
  two.states = 2;
  merge_problem<double> leaves(random, two);
  leaves.states = {joint.states[0], joint.states[1]};
  merge_problem<double> root(random, two);
  cpu::merge<double>({.states = leaves.states, .o = root.o[0].view(), .lse = root.lse[0].as_lse()});
  root.states[1] = joint.states[2];
  const auto copy = [&](const hostile_tensor<double>& from, const hostile_tensor<double>& to) {
    joint.for_each_row([&](index_t token, index_t head) {
      std::copy_n(from.view().row(token, head), from.view().head_dim, to.view().row(token, head));
    });
  };
  copy(joint.d_o, root.d_o);
  copy(joint.d_lse, root.d_lse);
  const auto upper = root.differentiate(cpu_backend{}, random);
  copy(upper.d_o[0], leaves.d_o);
  copy(upper.d_lse[0], leaves.d_lse);
  const auto lower = leaves.differentiate(cpu_backend{}, random);
  joint.for_each_row([&](index_t token, index_t head) {
    for (std::size_t s = 0; s < 3; ++s) {
      const auto& found = s == 2 ? upper : lower;
      const std::size_t at = s == 2 ? 1 : s;
      CHECK(std::abs(found.d_lse[at].as_lse().at(token, head) -
                     expected.d_lse[s].as_lse().at(token, head)) <= 1e-13);
      for (index_t i = 0; i < sizes.value_dim; ++i) {
        REQUIRE(std::abs(found.d_o[at].view().row(token, head)[i] -
                         expected.d_o[s].view().row(token, head)[i]) <= 1e-14);
      }
    }
  });
}

TEST_CASE("a sink logit is a state without a value", "[merge_backward]") {
  const std::uint64_t seed = test_seed(156);
  CAPTURE(seed);
  random_source random(seed);
  merge_problem<double> problem(random, {.states = 3, .tokens = 40, .heads = 2, .value_dim = 8});
  problem.for_each_row([&](index_t token, index_t head) {
    std::fill_n(problem.o[2].view().row(token, head), 8, 0.0);
    problem.lse[2].as_lse().at(token, head) = head == 0 ? 0.5 : -1;
  });
  const auto as_state = problem.differentiate(cpu_backend{}, random);
  problem.states.pop_back();
  problem.sizes.states = 2;
  problem.sink_logits = {0.5, -1};
  const auto as_sink = problem.differentiate(cpu_backend{}, random);
  for (index_t head = 0; head < 2; ++head) {
    double sum = 0;
    for (index_t token = 0; token < 40; ++token) {
      sum += as_state.d_lse[2].as_lse().at(token, head);
      CHECK(std::abs(as_sink.d_lse[0].as_lse().at(token, head) -
                     as_state.d_lse[0].as_lse().at(token, head)) <= 1e-14);
    }
    CHECK(std::abs(as_sink.d_sink_logits[static_cast<std::size_t>(head)] - sum) <= 1e-13);
  }
}

TEST_CASE("softmax backward of each part, after merge_backward, is the joint softmax backward",
          "[merge_backward]") {
  // One row of keys with scores and values, cut into parts: ds_j = P_j (d_o . (v_j - o) + d_lse)
  // within each part and over all of them, dv_j = P_j d_o.
  const std::uint64_t seed = test_seed(157);
  CAPTURE(seed);
  random_source random(seed);
  constexpr std::size_t parts = 3, per_part = 4, dim = 6;
  merge_problem<double> problem(random, {parts, 1, 1, static_cast<index_t>(dim)});
  const auto scores = random.normal_values<double>(parts * per_part);
  const auto values = random.normal_values<double>(parts * per_part * dim);
  using row = std::vector<double>;
  const auto softmax = [&](std::size_t begin, std::size_t end, double* o) {
    double sum = 0;
    for (std::size_t j = begin; j < end; ++j) sum += std::exp(scores[j]);
    for (std::size_t i = 0; i < dim; ++i) {
      o[i] = 0;
      for (std::size_t j = begin; j < end; ++j) {
        o[i] += std::exp(scores[j]) / sum * values[j * dim + i];
      }
    }
    return std::log(sum);
  };
  const auto backward = [&](std::size_t begin, std::size_t end, const double* o, double lse,
                            const double* d_o, double d_lse) {
    row gradients;  // ds_j, dv_j ...
    for (std::size_t j = begin; j < end; ++j) {
      const double p = std::exp(scores[j] - lse);
      double ds = d_lse;
      for (std::size_t i = 0; i < dim; ++i) ds += d_o[i] * (values[j * dim + i] - o[i]);
      gradients.push_back(p * ds);
      for (std::size_t i = 0; i < dim; ++i) gradients.push_back(p * d_o[i]);
    }
    return gradients;
  };
  for (std::size_t s = 0; s < parts; ++s) {
    problem.lse[s].as_lse().at(0, 0) =
        softmax(s * per_part, (s + 1) * per_part, problem.o[s].view().row(0, 0));
  }
  const auto through = problem.differentiate(cpu_backend{}, random);
  row found;
  for (std::size_t s = 0; s < parts; ++s) {
    const row part = backward(s * per_part, (s + 1) * per_part, problem.o[s].view().row(0, 0),
                              problem.lse[s].as_lse().at(0, 0), through.d_o[s].view().row(0, 0),
                              through.d_lse[s].as_lse().at(0, 0));
    found.insert(found.end(), part.begin(), part.end());
  }
  row o(dim);
  const double lse = softmax(0, parts * per_part, o.data());
  const row expected = backward(0, parts * per_part, o.data(), lse, problem.d_o.view().row(0, 0),
                                problem.d_lse.as_lse().at(0, 0));
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - expected[i]) <= 1e-13);
}

TEST_CASE("states of weight 0 get gradient 0 and are not read", "[merge_backward]") {
  random_source random(test_seed(158));
  merge_problem<float> problem(random, {.states = 2, .tokens = 3, .heads = 2, .value_dim = 9});
  problem.for_each_row([&](index_t token, index_t head) {
    std::fill_n(problem.o[1].view().row(token, head), 9, std::nanf(""));
    problem.lse[1].as_lse().at(token, head) = -2000;
  });
  const auto check_zero = [&](const merge_gradients<float>& found, std::size_t s) {
    problem.for_each_row([&](index_t token, index_t head) {
      CHECK(found.d_lse[s].as_lse().at(token, head) == 0);
      for (index_t i = 0; i < 9; ++i) CHECK(found.d_o[s].view().row(token, head)[i] == 0);
    });
  };
  const auto found = problem.differentiate(cpu_backend{}, random);
  check_zero(found, 1);
  problem.for_each_row([&](index_t token, index_t head) {  // state 0 has the whole share
    CHECK(std::equal(problem.d_o.view().row(token, head), problem.d_o.view().row(token, head) + 9,
                     found.d_o[0].view().row(token, head)));
  });
  // Sinks that leave nothing to any state: they get the whole d_lse.
  problem.sink_logits = {3000, 3000};
  problem.for_each_row([&](index_t token, index_t head) {
    std::fill_n(problem.o[0].view().row(token, head), 9, std::nanf(""));
  });
  const auto sunk = problem.differentiate(cpu_backend{}, random);
  check_zero(sunk, 0);
  check_zero(sunk, 1);
  for (index_t head = 0; head < 2; ++head) {
    float sum = 0;
    for (index_t token = 0; token < 3; ++token) sum += problem.d_lse.as_lse().at(token, head);
    CHECK(sunk.d_sink_logits[static_cast<std::size_t>(head)] == sum);
  }
}

TEST_CASE("gradients that are not wanted are left out", "[merge_backward]") {
  const std::uint64_t seed = test_seed(159);
  CAPTURE(seed);
  random_source random(seed);
  merge_problem<float> problem(random, {.states = 2, .tokens = 20, .heads = 2, .value_dim = 12});
  problem.sink_logits = {0.25F, -0.5F};
  const auto all = problem.differentiate(cpu_backend{}, random);
  std::vector<float> d_o(20 * 2 * 12);
  const partial_state_gradient<float> wanted[] = {{.d_o = token_major(d_o.data(), 20, 2, 12)}, {}};
  cpu::merge_backward<float>({.states = problem.states,
                              .d_o = problem.d_o.view(),
                              .d_lse = problem.d_lse.as_lse(),
                              .gradients = wanted,
                              .sink_logits = problem.sink_logits});
  problem.for_each_row([&](index_t token, index_t head) {
    CHECK(std::equal(wanted[0].d_o.row(token, head), wanted[0].d_o.row(token, head) + 12,
                     all.d_o[0].view().row(token, head)));
  });
  // Without d_lse it counts as 0.
  std::vector<float> d_lse(20 * 2);
  const partial_state_gradient<float> lse_wanted[] = {
      {.d_lse = token_major_lse(d_lse.data(), 20, 2)}, {}};
  cpu::merge_backward<float>({.states = problem.states,
                              .d_o = problem.d_o.view(),
                              .gradients = lse_wanted,
                              .sink_logits = problem.sink_logits});
  problem.for_each_row(
      [&](index_t token, index_t head) { problem.d_lse.as_lse().at(token, head) = 0; });
  const auto zero = problem.differentiate(cpu_backend{}, random);
  problem.for_each_row([&](index_t token, index_t head) {
    CHECK(lse_wanted[0].d_lse.at(token, head) == zero.d_lse[0].as_lse().at(token, head));
  });
}

TEST_CASE("merge_backward has the same bits in any order of tasks, in its exact workspace",
          "[merge_backward]") {
  const std::uint64_t seed = test_seed(160);
  CAPTURE(seed);
  random_source random(seed);
  merge_problem<float> problem(random, {.states = 3, .tokens = 50, .heads = 3, .value_dim = 24});
  problem.vary(random);
  if (problem.sink_logits.empty()) problem.sink_logits = {0.5F, 1.0F, -1.0F};
  random_source layouts(seed);
  const auto expected = problem.differentiate(cpu_backend{}, layouts);
  const auto same = [&](const merge_gradients<float>& found) {
    bool equal = found.d_sink_logits == expected.d_sink_logits;
    for (std::size_t s = 0; s < 3; ++s) {
      equal = equal && found.d_o[s].same_bits(expected.d_o[s]) &&
              found.d_lse[s].same_bits(expected.d_lse[s]) &&
              found.d_row_log_weights[s].same_bits(expected.d_row_log_weights[s]);
    }
    return equal;
  };
  for (const index_t workers : {1, 3}) {
    random_source again(seed);
    CHECK(same(problem.differentiate(cpu_workers<shuffling_executor>{{workers, seed}}, again)));
  }

  random_source again(seed);
  merge_gradients<float> result = problem.unwritten(again);
  const auto targets = problem.targets(result);
  const merge_backward_arguments<float> arguments = {.states = problem.states,
                                                     .d_o = problem.d_o.view(),
                                                     .d_lse = problem.d_lse.as_lse(),
                                                     .gradients = targets,
                                                     .sink_logits = problem.sink_logits,
                                                     .d_sink_logits = result.d_sink_logits};
  serial_executor serial;
  const index_t size = cpu::workspace_size(cpu::prepare_merge_backward<float>(arguments), 1);
  const workspace_buffer buffer(size + 64);
  std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{0xff});
  const auto exact = buffer.bytes().first(static_cast<std::size_t>(size));
  CHECK_THROWS_AS(cpu::merge_backward<float>(arguments, serial, exact.first(exact.size() - 1)),
                  error);
  CHECK_THROWS_AS(cpu::merge_backward<float>(arguments, serial, buffer.bytes().subspan(8)), error);
  for (const auto& d_o : result.d_o) CHECK(d_o.all_untouched());
  cpu::merge_backward<float>(arguments, serial, exact);
  CHECK(same(result));
  for (const std::byte after : buffer.bytes().subspan(exact.size()))
    CHECK(after == std::byte{0xff});
}
