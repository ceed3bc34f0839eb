// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>
#include <blockattn/core/overlap_checks.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// How the weight of a token follows from its score, which says how much block attention changes
/// the prediction there.
enum class token_weighting {
  uniform,       ///< 1 for every token; scores are not needed
  proportional,  ///< the score
  top_fraction,  ///< 1 for the tokens with the largest scores, 0 for the others
};

/// Floor and cap are in units of the mean over the tokens that count.
struct token_weight_options {
  token_weighting weighting = token_weighting::proportional;
  double fraction = 0.5;  ///< top_fraction: ceil(fraction * tokens that count) are kept, in (0, 1]
  double floor = 0;       ///< >= 0
  double cap = std::numeric_limits<double>::infinity();  ///< > 0, at least floor
};

template <class C = float>
struct token_weight_arguments {
  /// (tokens) >= 0: the token_losses of a distillation_loss without labels, where teacher and
  /// student disagree most, or label_gaps, where the true token suffers most.
  std::span<const C> scores = {};
  /// (tokens) not 0: does not count; empty = all count.
  std::span<const std::uint8_t> ignored = {};
  std::span<C> weights;  ///< (tokens), written; may be the scores
};

namespace detail {

/// Options and sizes: all that can be said without reading an element.
template <class C>
void check_token_weight_shapes(const char* function,
                               const token_weight_arguments<C>& arguments,
                               const token_weight_options& options) {
  const auto& [scores, ignored, weights] = arguments;
  require(scores.size() == weights.size() ||
              (options.weighting == token_weighting::uniform && scores.empty()),
          function, ": ", scores.size(), " scores for ", weights.size(), " weights");
  require(ignored.empty() || ignored.size() == weights.size(), function, ": ignored has ",
          ignored.size(), " entries for ", weights.size(), " weights");
  check_enumerator(function, "options.weighting", options.weighting, token_weighting::top_fraction);
  check_same_or_apart(function, "weights", weights, "scores", scores);
  check_apart(function, {{"weights", footprint_of(weights)}}, {{"ignored", footprint_of(ignored)}});
  require(options.fraction > 0 && options.fraction <= 1, function, ": options.fraction is ",
          options.fraction, ", must be in (0, 1]");
  require(options.floor >= 0 && options.cap > 0 && options.floor <= options.cap &&
              options.floor <= std::numeric_limits<double>::max(),
          function, ": options.floor is ", options.floor, " and options.cap ", options.cap,
          ", must be 0 <= floor <= cap and cap > 0");
}

}  // namespace detail

/// The weights of a distillation loss from token scores. Detached: constants to the gradient.
///   w_t = clamp(r_t / mean r, floor, cap), divided by the mean of that, so that mean w = 1,
/// r_t the score, 1, or 1 for the kept fraction (of equal scores the earlier token is kept). The
/// last division keeps max w / min w <= cap / floor. Tokens that do not count weigh 0 and enter no
/// mean; when no score is positive, all tokens that count weigh 1. Throws `error` on lengths that
/// disagree, a score that is negative or not finite, and options out of range. O(tokens), fp64 sums
/// in token order; top_fraction allocates 8 bytes for each token.
template <class C = float>
void token_weights(const token_weight_arguments<C>& arguments,
                   const token_weight_options& options = {}) {
  const auto& [scores, ignored, weights] = arguments;
  const bool needs_scores = options.weighting != token_weighting::uniform;
  detail::check_token_weight_shapes("token_weights", arguments, options);
  const auto counts = [ignored = ignored](std::size_t t) {
    return ignored.empty() || ignored[t] == 0;
  };
  const auto count = weights.size();
  index_t counted = 0;
  for (std::size_t t = 0; t < count; ++t) {
    if (!counts(t)) continue;
    ++counted;
    detail::require(!needs_scores || (scores[t] >= 0 && scores[t] <= std::numeric_limits<C>::max()),
                    "token_weights: scores[", t, "] is ", needs_scores ? scores[t] : C(0),
                    ", must be finite and >= 0");
  }

  // r_t, in place of the weights.
  if (options.weighting == token_weighting::top_fraction) {
    std::vector<std::size_t> order;
    for (std::size_t t = 0; t < count; ++t) {
      if (counts(t)) order.push_back(t);
    }
    const auto kept = std::min(
        counted, static_cast<index_t>(std::ceil(options.fraction * static_cast<double>(counted))));
    std::nth_element(order.begin(), order.begin() + kept, order.end(),
                     [scores = scores](std::size_t a, std::size_t b) {
                       return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
                     });
    std::fill(weights.begin(), weights.end(), C(0));
    for (index_t i = 0; i < kept; ++i) weights[order[static_cast<std::size_t>(i)]] = C(1);
  } else {
    for (std::size_t t = 0; t < count; ++t) {
      weights[t] = !counts(t) ? C(0) : needs_scores ? scores[t] : C(1);
    }
  }

  const auto mean = [&, weights = weights] {
    double sum = 0;
    for (const C weight : weights) sum += static_cast<double>(weight);
    return sum / static_cast<double>(std::max<index_t>(counted, 1));
  };
  const double mean_score = mean();
  for (std::size_t t = 0; t < count; ++t) {
    if (!counts(t)) continue;
    const double relative = mean_score > 0 ? static_cast<double>(weights[t]) / mean_score : 1.0;
    weights[t] = static_cast<C>(std::clamp(relative, options.floor, options.cap));
  }
  const double mean_weight = mean();
  for (C& weight : weights) {
    weight = mean_weight > 0 ? static_cast<C>(static_cast<double>(weight) / mean_weight) : weight;
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI
