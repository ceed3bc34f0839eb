// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>
#include <blockattn/core/storage.hpp>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <numbers>
#include <span>

/// \file
/// Softmax states of one row and their merge. These functions run once per row, inside the loops of
/// the backends: they check nothing, allocate nothing, and take the kernel's instruction set as
/// their first template argument, so that translation units built for different machines never
/// share a symbol. `void` serves code that is built once.

namespace blockattn::inline BLOCKATTN_ABI {

/// The softmax state of one query row over some of its keys j with scores s_j:
///   lse = log(sum_j exp(s_j)),   o = sum_j exp(s_j - lse) v_j.
/// States over disjoint keys merge into the state over all of them, in any order and grouping. The
/// identity is (0, -inf), a row that sees nothing.
template <std::floating_point T, storage_scalar O = T>
struct softmax_state {
  std::span<const O> o;                         ///< (value_dim)
  T lse = -std::numeric_limits<T>::infinity();  ///< natural log
};

/// log(exp(a) + exp(b)). -inf is the identity: never NaN for a, b < +inf.
template <class Arch = void, std::floating_point T>
T merged_lse(T a, T b) noexcept {
  if (a == b) return a + std::numbers::ln2_v<T>;  // also keeps -inf - -inf out of the next line
  return std::max(a, b) + std::log1p(std::exp(-std::abs(a - b)));
}

/// The part of softmax over {a, b} that a gets: exp(a) / (exp(a) + exp(b)), as
/// 1 / (1 + exp(b - a)), which needs no maximum. 0 when a is -inf, whatever b is.
template <class Arch = void, std::floating_point T>
T merge_weight(T a, T b) noexcept {
  return a == -std::numeric_limits<T>::infinity() ? T{0} : 1 / (1 + std::exp(b - a));
}

/// What a state brings to a merge in place of its lse: log_weight_scale * lse + log_weight.
/// - (1, 0): the plain merge; (1, w): the keys count exp(w) times; w = -inf: absent.
/// - APE (arXiv 2502.05431), context part: (sigma, 0), its scores divided by T before.
/// - Landmark attention (arXiv 2305.16300), one block: (0, landmark logit).
/// A state that saw nothing stays the identity: -inf gives -inf, also with a scale of 0.
template <class Arch = void, std::floating_point T>
T weighted_lse(T lse, T log_weight_scale, T log_weight) noexcept {
  return lse == -std::numeric_limits<T>::infinity() ? lse : log_weight_scale * lse + log_weight;
}

/// Weights of a merge of any number of states: with L = log(sum_p exp(lse_p)), which is returned,
/// weights[p] = exp(lse_p - L). No states, or only -inf: L = -inf and weights 0. The sums run in
/// the given order, so equal input gives equal bits.
///
/// \param lse      (states) lse or weighted_lse of each state, natural log, < +inf
/// \param weights  (states) written; of the size of lse, may be the same memory
template <class Arch = void, std::floating_point T>
T merge_weights(std::span<const T> lse, std::span<T> weights) noexcept {
  constexpr T nothing = -std::numeric_limits<T>::infinity();
  T largest = nothing;
  for (const T value : lse) largest = value > largest || std::isnan(value) ? value : largest;
  if (largest == nothing) {
    std::fill(weights.begin(), weights.end(), T{0});
    return nothing;
  }
  T sum = 0;
  for (std::size_t p = 0; p < lse.size(); ++p) {
    weights[p] = std::exp(lse[p] - largest);
    sum += weights[p];
  }
  const T scale = 1 / sum;
  for (T& weight : weights) weight *= scale;
  return largest + std::log(sum);
}

/// o[i] = sum_p weights[p] * states[p].o[i], rounded once to the storage of o. States of weight 0
/// are not read: their o may hold anything.
///
/// \param states   rows of o.size() values each
/// \param weights  (states), from merge_weights
/// \param o        (value_dim) written; may be the same memory as one of the rows
template <class Arch = void, std::floating_point T, storage_scalar In, storage_scalar Out>
void merge_rows(std::span<const softmax_state<T, In>> states,
                std::span<const T> weights,
                std::span<Out> o) noexcept {
  // A chunk of sums stays in registers while the states pass by: each value is read once.
  constexpr std::size_t chunk = 64 / sizeof(T);
  for (std::size_t begin = 0; begin < o.size(); begin += chunk) {
    const std::size_t count = std::min(chunk, o.size() - begin);
    T sums[chunk] = {};
    for (std::size_t p = 0; p < states.size(); ++p) {
      if (weights[p] == 0) continue;
      const In* values = states[p].o.data() + begin;
      for (std::size_t i = 0; i < count; ++i) {
        sums[i] += weights[p] * static_cast<T>(load_scalar(values[i]));
      }
    }
    for (std::size_t i = 0; i < count; ++i) store_scalar(o[begin + i], sums[i]);
  }
}

/// The merge of two states in place: (o, lse) becomes merge((o, lse), other), where states arrive
/// one after the other. A state that saw nothing is not read, on either side; o then holds other's
/// row. other.o has o.size() values.
template <class Arch = void, std::floating_point T, storage_scalar In>
void merge_into(std::span<T> o, T& lse, const softmax_state<T, In>& other) noexcept {
  const T weight = merge_weight<Arch>(other.lse, lse);
  if (weight == 0) return;
  const T kept = merge_weight<Arch>(lse, other.lse);
  for (std::size_t i = 0; i < o.size(); ++i) {
    const T before = kept == 0 ? T{0} : kept * o[i];
    o[i] = before + weight * static_cast<T>(load_scalar(other.o[i]));
  }
  lse = merged_lse<Arch>(lse, other.lse);
}

/// A state after its sink logit: multiply o by output_scale.
template <std::floating_point T>
struct sink_result {
  T output_scale;
  T lse;
};

/// Adds exp(sink) to the softmax denominator, a key whose value is 0: o scales by
/// sigmoid(lse - sink). Once per row, after the last merge. A row that saw nothing ends with
/// lse = sink (its o is 0); sink = -inf is absent and changes no bit. r equal sinks are one of
/// logit sink + log(r).
template <class Arch = void, std::floating_point T>
sink_result<T> apply_sink_logit(T lse, T sink) noexcept {
  if (sink == -std::numeric_limits<T>::infinity()) return {T{1}, lse};
  return {merge_weight<Arch>(lse, sink), merged_lse<Arch>(lse, sink)};
}

}  // namespace blockattn::inline BLOCKATTN_ABI
