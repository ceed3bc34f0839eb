// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/rope/rope_options.hpp>
#include <cmath>
#include <numbers>
#include <variant>
#include <vector>

/// \file
/// From rope_options to the frequency of each pair. The formulas are those of transformers'
/// modeling_rope_utils, in fp64 throughout (transformers rounds frequencies to fp32).

namespace blockattn::inline BLOCKATTN_ABI::detail {

inline constexpr double default_rope_theta = 10000;

inline void check_rope_factor(const char* scaling, double factor) {
  require(std::isfinite(factor) && factor >= 1, "rope: ", scaling, " factor is ", factor,
          ", must be finite and >= 1");
}

inline void check_original_context(const char* scaling, double context) {
  require(std::isfinite(context) && context > 0, "rope: ", scaling, " original_context is ",
          context, ", must be finite and positive");
}

inline void check_needs_theta(const char* scaling, const rope_options& options) {
  require(options.frequencies.empty(), "rope: ", scaling,
          " scaling is defined by theta, but frequencies are given");
}

inline void check_rope_list(const char* name, std::span<const double> list, index_t pairs) {
  const auto size = static_cast<index_t>(list.size());
  require(size == 0 || size == pairs, "rope: ", size, " ", name, " for ", pairs, " pairs");
}

/// theta of the call, NTK included.
inline double resolved_theta(const rope_options& options, index_t rotary_dim) {
  const double theta = options.theta.value_or(default_rope_theta);
  require(std::isfinite(theta) && theta > 1, "rope: theta is ", theta, ", must be finite and > 1");
  const auto* ntk = std::get_if<ntk_rope_scaling>(&options.scaling);
  if (ntk == nullptr) return theta;
  check_rope_factor("NTK", ntk->factor);
  check_needs_theta("NTK", options);
  require(rotary_dim > 2, "rope: NTK scaling needs rotary_dim > 2, it is ", rotary_dim);
  const auto d = static_cast<double>(rotary_dim);
  const double scaled = theta * std::pow(ntk->factor, d / (d - 2));
  require(std::isfinite(scaled), "rope: NTK factor ", ntk->factor, " turns theta ", theta,
          " into a number that is not finite");
  return scaled;
}

/// (rotary_dim / 2) frequencies before the scaling by pair.
inline std::vector<double> unscaled_rope_frequencies(const rope_options& options,
                                                     index_t rotary_dim) {
  const index_t pairs = rotary_dim / 2;
  check_rope_list("frequencies", options.frequencies, pairs);
  check_rope_list("frequency_divisors", options.frequency_divisors, pairs);
  require(options.frequencies.empty() || !options.theta,
          "rope: both theta and frequencies are given");
  const double theta = resolved_theta(options, rotary_dim);
  std::vector<double> frequencies(static_cast<std::size_t>(pairs));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] =
        options.frequencies.empty()
            ? std::pow(theta, -2 * static_cast<double>(i) / static_cast<double>(rotary_dim))
            : options.frequencies[i];
    if (!options.frequency_divisors.empty()) {
      const double divisor = options.frequency_divisors[i];
      require(std::isfinite(divisor) && divisor > 0, "rope: frequency_divisors[", i, "] is ",
              divisor, ", must be finite and positive");
      frequencies[i] /= divisor;
    }
    require(std::isfinite(frequencies[i]) && frequencies[i] >= 0, "rope: frequencies[", i, "] is ",
            frequencies[i], ", must be finite and >= 0");
  }
  return frequencies;
}

/// The pair (a real number) that turns `turns` times within the original context; arXiv 2309.00071,
/// section 3.2 solved for the pair.
inline double yarn_pair(const yarn_rope_scaling& yarn,
                        double turns,
                        double theta,
                        double rotary_dim) {
  const double wavelength = yarn.original_context / turns;
  return rotary_dim * std::log(wavelength / (2 * std::numbers::pi)) / (2 * std::log(theta));
}

inline void scale_frequencies(const yarn_rope_scaling& yarn,
                              const rope_options& options,
                              index_t rotary_dim,
                              std::vector<double>& frequencies) {
  check_rope_factor("YaRN", yarn.factor);
  check_original_context("YaRN", yarn.original_context);
  check_needs_theta("YaRN", options);
  require(yarn.beta_slow > 0 && yarn.beta_fast > yarn.beta_slow && std::isfinite(yarn.beta_fast),
          "rope: YaRN beta_fast is ", yarn.beta_fast, " and beta_slow ", yarn.beta_slow,
          ", must be finite with beta_fast > beta_slow > 0");
  const double theta = options.theta.value_or(default_rope_theta);
  const auto d = static_cast<double>(rotary_dim);
  // Whole pairs, clamped to [0, d - 1] (not d / 2 - 1), and a ramp of at least 0.001 pairs: the
  // choices of the released code, which models were trained with.
  const double kept = std::max(std::floor(yarn_pair(yarn, yarn.beta_fast, theta, d)), 0.0);
  const double divided = std::min(std::ceil(yarn_pair(yarn, yarn.beta_slow, theta, d)), d - 1);
  const double width = kept == divided ? 0.001 : divided - kept;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - kept) / width, 0.0, 1.0);
    frequencies[i] *= (1 - ramp) + ramp / yarn.factor;
  }
}

inline void scale_frequencies(const llama3_rope_scaling& llama3, std::vector<double>& frequencies) {
  check_rope_factor("Llama 3", llama3.factor);
  check_original_context("Llama 3", llama3.original_context);
  const double low = llama3.low_freq_factor;
  const double high = llama3.high_freq_factor;
  require(low > 0 && high > low && std::isfinite(high), "rope: Llama 3 low_freq_factor is ", low,
          " and high_freq_factor ", high, ", must be finite with 0 < low < high");
  for (double& frequency : frequencies) {
    const double turns = llama3.original_context * frequency / (2 * std::numbers::pi);
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    frequency *= kept + (1 - kept) / llama3.factor;
  }
}

[[noreturn]] inline void refuse_scaling(length_dependent_rope_scaling scaling) {
  check_enumerator("rope", "length_dependent_rope_scaling", scaling,
                   length_dependent_rope_scaling::longrope);
  if (scaling == length_dependent_rope_scaling::dynamic_ntk) {
    fail(
        "rope: dynamic NTK scaling is refused: its frequencies change with the length of the "
        "prompt, so a cached key could not be shifted; use ntk_rope_scaling with a fixed factor");
  }
  fail(
      "rope: LongRoPE switched by length is refused: its frequencies change with the length of the "
      "prompt, so a cached key could not be shifted; choose one set of factors and pass it as "
      "frequency_divisors");
}

/// (rotary_dim / 2) radians per position.
inline std::vector<double> scaled_rope_frequencies(const rope_options& options,
                                                   index_t rotary_dim) {
  if (const auto* refused = std::get_if<length_dependent_rope_scaling>(&options.scaling)) {
    refuse_scaling(*refused);
  }
  std::vector<double> frequencies = unscaled_rope_frequencies(options, rotary_dim);
  if (const auto* linear = std::get_if<linear_rope_scaling>(&options.scaling)) {
    check_rope_factor("linear", linear->factor);
    for (double& frequency : frequencies) frequency /= linear->factor;
  } else if (const auto* yarn = std::get_if<yarn_rope_scaling>(&options.scaling)) {
    scale_frequencies(*yarn, options, rotary_dim, frequencies);
  } else if (const auto* llama3 = std::get_if<llama3_rope_scaling>(&options.scaling)) {
    scale_frequencies(*llama3, frequencies);
  }
  return frequencies;
}

/// m of R_p = m * U_p.
inline double resolved_attention_factor(const rope_options& options) {
  const auto* yarn = std::get_if<yarn_rope_scaling>(&options.scaling);
  const double by_default = yarn != nullptr ? 0.1 * std::log(yarn->factor) + 1 : 1.0;
  const double factor = options.attention_factor.value_or(by_default);
  require(std::isfinite(factor) && factor > 0, "rope: attention_factor is ", factor,
          ", must be finite and positive");
  return factor;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
