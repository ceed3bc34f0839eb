// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/distill/label_log_probability_arguments.hpp>
#include <blockattn/distill/token_weights.hpp>

#include "distill/distillation_agreement.hpp"

/// \file
/// The distillation room on the device, for tests that the host compiler compiles. Tensors travel
/// as in cuda_backend.

namespace blockattn_test {

struct cuda_distillation {
  /// Defined for all types equal and fp32, bf16 or fp16, and for two mixtures.
  template <class Teacher, class Student, class Gradient>
  double distillation_loss(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                           const distillation_options& options) const;

  /// A thread adds up pieces of 4 or 8 logits; then 512 threads are added in a tree. ex2.approx
  /// errs by 2^-22, which is 4 roundoffs.
  template <class C>
  static summation_rounding rounding(index_t vocabulary) {
    return {.exponential = 4, .additions = static_cast<double>(8 + vocabulary / 2048 + 1 + 9)};
  }
};

/// `cuda::distillation_loss` where it refuses a call, else nothing.
void refused_distillation_loss(const distillation_arguments<float>& arguments,
                               const distillation_options& options,
                               std::span<std::byte> workspace);
index_t device_loss_workspace_size(index_t tokens);

/// Defined for fp32, bf16 and fp16.
template <class Logit>
void device_label_log_probabilities(const label_log_probability_arguments<Logit>& arguments);

void device_label_gaps(std::span<const float> teacher,
                       std::span<const float> student,
                       std::span<float> scores);

void device_token_weights(const token_weight_arguments<float>& arguments,
                          const token_weight_options& options);

/// The same where they refuse a call, else nothing.
void refused_label_log_probabilities(const label_log_probability_arguments<float>& arguments);
void refused_label_gaps(std::span<const float> teacher,
                        std::span<const float> student,
                        std::span<float> scores);
void refused_token_weights(const token_weight_arguments<float>& arguments,
                           const token_weight_options& options);

}  // namespace blockattn_test
