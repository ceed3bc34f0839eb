// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "matrix.hpp"

namespace distillation {

struct optimizer_options {
  double learning_rate = 2e-3;  ///< at its highest
  double beta1 = 0.9;
  double beta2 = 0.98;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double gradient_norm = 1;  ///< longer gradients are cut to this length
  double warmup = 0.05;      ///< share of the steps in which the rate rises from 0
  double final_rate = 0.05;  ///< share of the highest rate that the cosine ends at
};

/// The rate of a step: linear warm-up, then half a cosine.
inline double learning_rate(const optimizer_options& options, ba::index_t step, ba::index_t steps) {
  const double done = (static_cast<double>(step) + 1) / static_cast<double>(steps);
  if (done < options.warmup) return options.learning_rate * done / options.warmup;
  const double along = (done - options.warmup) / (1 - options.warmup);
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * along));
  return options.learning_rate * (options.final_rate + (1 - options.final_rate) * cosine);
}

/// AdamW (arXiv 1711.05101) with the gradient's length limited.
class adamw {
 public:
  explicit adamw(std::size_t parameters) : mean_(parameters), square_(parameters) {}

  /// w -= rate (m / (sqrt(v) + epsilon) + weight_decay w), m and v with their bias corrected.
  /// \param step  from 0
  void update(std::span<float> weights,
              std::span<const float> gradient,
              const optimizer_options& options,
              ba::index_t step,
              ba::index_t steps) {
    using array = Eigen::ArrayXf;
    const auto size = static_cast<Eigen::Index>(weights.size());
    Eigen::Map<array> w(weights.data(), size);
    Eigen::Map<array> m(mean_.data(), size);
    Eigen::Map<array> v(square_.data(), size);
    const Eigen::Map<const array> g(gradient.data(), size);

    const double length = std::sqrt(static_cast<double>(g.square().sum()));
    const double cut = std::min(1.0, options.gradient_norm / std::max(length, 1e-30));
    const auto share1 = static_cast<float>((1 - options.beta1) * cut);
    const auto share2 = static_cast<float>((1 - options.beta2) * cut * cut);
    m = static_cast<float>(options.beta1) * m + share1 * g;
    v = static_cast<float>(options.beta2) * v + share2 * g.square();

    const double count = static_cast<double>(step) + 1;
    const double rate = learning_rate(options, step, steps);
    const auto m_scale = static_cast<float>(rate / (1 - std::pow(options.beta1, count)));
    const auto v_scale = static_cast<float>(1 / (1 - std::pow(options.beta2, count)));
    w *= static_cast<float>(1 - rate * options.weight_decay);
    w -= m_scale * m / ((v_scale * v).sqrt() + static_cast<float>(options.epsilon));
  }

  /// The state, for a checkpoint.
  parameter_vector<float>& mean() { return mean_; }
  parameter_vector<float>& square() { return square_; }

 private:
  parameter_vector<float> mean_;
  parameter_vector<float> square_;
};

}  // namespace distillation
