// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/backward.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/merge.hpp>
#include <blockattn/cpu/merge_backward.hpp>

#include "support/attention_case.hpp"
#include "support/unit_roundoff.hpp"

namespace blockattn_test {

/// The CPU as a backend of the shared tests.
struct cpu_backend {
  template <class Q, class K, class V, class O>
  void forward(const forward_arguments<Q, K, V, O>& arguments,
               const head_masks& masks,
               const attention_options& options = {}) const {
    const std::vector<tile_plan> plans = masks.make_plans();
    cpu::forward(arguments, plan_set(plans, masks.head_to_mask), options);
  }

  template <class... Types>
  void backward(const backward_arguments<Types...>& arguments,
                const head_masks& masks,
                const attention_options& options = {}) const {
    const std::vector<tile_plan> plans = masks.make_plans({.transposed = true});
    cpu::backward(arguments, plan_set(plans, masks.head_to_mask), options);
  }

  template <class P, class O>
  void merge(const merge_arguments<P, O>& arguments) const {
    cpu::merge(arguments);
  }

  template <class... Types>
  void merge_backward(const merge_backward_arguments<Types...>& arguments) const {
    cpu::merge_backward(arguments);
  }

  /// Relative rounding error of the scale: queries take it with all its digits, except where pairs
  /// of bf16 are multiplied, whose exponents have a rounded factor.
  template <class T>
  static constexpr double scale_error = format_of<T> == storage_format::bf16
                                            ? unit_roundoff<float>()
                                            : 0;
};

}  // namespace blockattn_test
