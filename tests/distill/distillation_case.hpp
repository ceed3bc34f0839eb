// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/distill/distillation_loss.hpp>
#include <blockattn/distill/reference_distillation_loss.hpp>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/hostile_tensor.hpp"
#include "support/random.hpp"

namespace blockattn_test {

/// What a random distillation call is drawn from.
struct distillation_shape {
  index_t tokens = 3;
  index_t vocabulary = 100;
  index_t k = 0;  ///< of a top-k teacher; 0: all logits
  double magnitude = 3;
  double student_noise = 0.5;  ///< student = teacher + noise, both times magnitude
  bool plain = false;          ///< no weights, all tokens count
  bool aligned = false;        ///< every row begins at a multiple of 16 elements

  tensor_layout random_layout(random_source& random) const {
    if (!aligned) return random_tensor_layout(random);
    return {.row_gap = round_up(vocabulary, 16) - vocabulary};
  }
};

/// Owns everything a call refers to. Rows that do not count hold NaN, as do all margins.
template <class Teacher, class Student = Teacher, class Gradient = Student>
struct distillation_case {
  using C = accumulator_t<Teacher, Student, Gradient>;

  distillation_case(random_source& random,
                    const distillation_shape& wanted,
                    const distillation_options& with)
      : shape(wanted),
        options(with),
        teacher(shape.tokens, 1, shape.vocabulary, shape.random_layout(random)),
        student(shape.tokens, 1, shape.vocabulary, shape.random_layout(random)),
        gradient(shape.tokens, 1, shape.vocabulary, shape.random_layout(random)) {
    for (index_t token = 0; token < shape.tokens; ++token) {
      weights.push_back(shape.plain ? C(1)
                                    : static_cast<C>(random.chance(0.1) ? 0 : random.real(0, 2)));
      ignored.push_back(!shape.plain && random.chance(0.15));
      const bool labelled = random.chance(0.8);
      labels.push_back(labelled ? static_cast<std::int32_t>(random.integer(0, shape.vocabulary - 1))
                                : -100);
      std::vector<double> teacher_row;
      for (index_t v = 0; v < shape.vocabulary; ++v) {
        const double common = random.normal();
        const double noise = random.normal();
        teacher_row.push_back(shape.magnitude * common);
        if (!counts(token)) continue;
        store_scalar(teacher.view().row(token, 0)[v], teacher_row.back());
        store_scalar(student.view().row(token, 0)[v],
                     shape.magnitude * (common + shape.student_noise * noise));
      }
      if (shape.k > 0) add_top_k(teacher_row);
    }
    token_losses.assign(static_cast<std::size_t>(shape.tokens), static_cast<C>(std::nan("")));
  }

  bool counts(index_t token) const {
    const auto t = static_cast<std::size_t>(token);
    return weights[t] > 0 && ignored[t] == 0;
  }

  template <class T>
  static logits_view<T> logits(const hostile_tensor<T>& tensor) {
    const heads_view<T> view = tensor.view();
    return {view.data, view.tokens, view.head_dim, view.token_stride};
  }

  distillation_arguments<Teacher, Student, Gradient> arguments() {
    distillation_arguments<Teacher, Student, Gradient> result{.student = logits(student),
                                                              .weights = weights,
                                                              .ignored = ignored,
                                                              .labels = labels,
                                                              .d_student = logits(gradient),
                                                              .token_losses = token_losses};
    if (shape.k > 0) {
      result.top_k = {.ids = ids, .log_probabilities = log_probabilities, .rest_mass = rest_mass};
    } else {
      result.teacher = logits(teacher);
    }
    return result;
  }

  double gradient_at(index_t token, index_t v) const {
    return static_cast<double>(load_scalar(gradient.view().row(token, 0)[v]));
  }

  distillation_shape shape;
  distillation_options options;
  hostile_tensor<Teacher> teacher;
  hostile_tensor<Student> student;
  hostile_tensor<Gradient> gradient;
  std::vector<C> weights;
  std::vector<std::uint8_t> ignored;
  std::vector<std::int32_t> labels;
  std::vector<std::int32_t> ids;
  std::vector<C> log_probabilities;
  std::vector<C> rest_mass;
  std::vector<C> token_losses;

 private:
  void add_top_k(const std::vector<double>& logits) {
    const double temperature = options.temperature;
    std::vector<std::int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto at = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return at(a) > at(b); });
    const double largest = at(order.front());
    double total = 0;
    for (const double logit : logits) total += std::exp((logit - largest) / temperature);
    std::sort(order.begin(), order.begin() + shape.k);
    double rest = 1;
    for (index_t j = 0; j < shape.k; ++j) {
      const std::int32_t id = order[static_cast<std::size_t>(j)];
      const double log = (at(id) - largest) / temperature - std::log(total);
      ids.push_back(id);
      log_probabilities.push_back(std::min(C(0), static_cast<C>(log)));
      rest -= std::exp(log);
    }
    rest_mass.push_back(static_cast<C>(std::clamp(rest, 0.0, 1.0)));
  }
};

/// The same call on plain fp64 copies, by the reference.
struct distillation_oracle {
  double loss = 0;
  std::vector<double> token_losses;
  std::vector<double> gradient;  ///< (tokens, vocabulary)
  std::vector<double> teacher;
  std::vector<double> student;

  template <class Teacher, class Student, class Gradient>
  explicit distillation_oracle(distillation_case<Teacher, Student, Gradient>& test) {
    const auto& [tokens, vocabulary, k, magnitude, noise, plain, aligned] = test.shape;
    const auto size = static_cast<std::size_t>(tokens * vocabulary);
    gradient.resize(size);
    token_losses.resize(static_cast<std::size_t>(tokens));
    for (index_t token = 0; token < tokens; ++token) {
      for (index_t v = 0; v < vocabulary; ++v) {
        teacher.push_back(static_cast<double>(load_scalar(test.teacher.view().row(token, 0)[v])));
        student.push_back(static_cast<double>(load_scalar(test.student.view().row(token, 0)[v])));
      }
    }
    const std::vector<double> weights(test.weights.begin(), test.weights.end());
    const std::vector<double> logs(test.log_probabilities.begin(), test.log_probabilities.end());
    std::vector<double> rest;  // the floor is that of the call's accumulator
    for (const auto mass : test.rest_mass) {
      using C = accumulator_t<Teacher, Student, Gradient>;
      rest.push_back(static_cast<double>(std::max(mass, std::numeric_limits<C>::min())));
    }
    distillation_arguments<double> arguments{
        .student = dense_logits<const double>(student.data(), tokens, vocabulary),
        .weights = weights,
        .ignored = test.ignored,
        .labels = test.labels,
        .d_student = dense_logits(gradient.data(), tokens, vocabulary),
        .token_losses = token_losses};
    if (k > 0) {
      arguments.top_k = {.ids = test.ids, .log_probabilities = logs, .rest_mass = rest};
    } else {
      arguments.teacher = dense_logits<const double>(teacher.data(), tokens, vocabulary);
    }
    loss = reference::distillation_loss(arguments, test.options);
  }
};

inline constexpr divergence all_divergences[] = {divergence::forward_kl, divergence::reverse_kl,
                                                 divergence::jensen_shannon};

/// Every divergence with every way of tempering and mixing labels in.
inline std::vector<distillation_options> all_distillation_options() {
  std::vector<distillation_options> all;
  for (const divergence kind : all_divergences) {
    for (const double temperature : {1.0, 0.7, 3.0}) {
      for (const double label_weight : {0.0, 0.3, 1.0}) {
        all.push_back({.divergence = kind,
                       .teacher_share = 0.3,
                       .temperature = temperature,
                       .label_weight = label_weight});
      }
    }
  }
  all.push_back({.temperature = 2, .temperature_factor = temperature_factor::none});
  all.push_back({.total_weight = 17, .gradient_scale = -1024});
  return all;
}

}  // namespace blockattn_test
