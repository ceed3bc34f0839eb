// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/run_job.hpp>
#include <blockattn/distill/distillation_checks.hpp>
#include <blockattn/distill/distillation_job.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Checks a distillation loss and cuts it into tasks, one phase. Throws what `distillation_loss`
/// throws. After the phase, job.loss(workspace) is the loss. O(tokens), or O(tokens * k) for a
/// top-k teacher.
template <class Teacher = float,
          class Student = Teacher,
          class Gradient = Student,
          class Arch = default_arch>
distillation_job<Teacher, Student, Gradient, Arch> prepare_distillation_loss(
    const distillation_arguments<Teacher, Student, Gradient>& arguments,
    const distillation_options& options = {}) {
  detail::check_distillation("distillation_loss", arguments, options);
  return distillation_job<Teacher, Student, Gradient, Arch>(arguments, options);
}

/// The loss that teaches a block-attention student what its frozen full-attention teacher says of
/// the same tokens (block distillation, arXiv 2605.15913), and its gradient:
///   L         = sum_t w_t l_t / sum_t w_t over the tokens t that count, l_t as in
///               distillation_options,
///   d_student = gradient_scale * dL / d student.
/// Returns L. Scaling all weights changes nothing (unless options.total_weight is given); when no
/// token counts or all weights are 0, L and the gradient are 0. Weights and teacher are constants.
///
/// One pass over a row of logits (two for jensen_shannon, one more for labels at another
/// temperature) gives the loss; for the gradient it keeps the exponentials of this one row until
/// their sums are known. No matrix of probabilities exists. Sums are fp32 over 1024 tokens of the
/// vocabulary and fp64 beyond. Same bits for every executor, in place or not, with or without a
/// gradient. O(tokens * vocabulary). Equals reference::distillation_loss. Throws `error` on shapes
/// that disagree, labels or ids outside the vocabulary and numbers out of range, before anything is
/// written. Workspace: 8 bytes for each token and, with a gradient, up to three rows of
/// accumulators for each worker: workspace_size(prepare_distillation_loss(...), concurrency) bytes.
template <class Teacher = float,
          class Student = Teacher,
          class Gradient = Student,
          class Arch = default_arch,
          class Executor>
requires executor<std::remove_reference_t<Executor>>
double distillation_loss(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                         const distillation_options& options,
                         Executor&& workers,
                         std::span<std::byte> workspace) {
  const auto job = prepare_distillation_loss<Teacher, Student, Gradient, Arch>(arguments, options);
  run_job("distillation_loss", job, workers, workspace);
  return job.loss(workspace);
}

/// The same with a workspace allocated for this call.
template <class Teacher = float,
          class Student = Teacher,
          class Gradient = Student,
          class Arch = default_arch,
          class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
double distillation_loss(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                         const distillation_options& options = {},
                         Executor&& workers = Executor{}) {
  const auto job = prepare_distillation_loss<Teacher, Student, Gradient, Arch>(arguments, options);
  const workspace_buffer workspace(detail::workspace_size_for("distillation_loss", job, workers));
  run_job("distillation_loss", job, workers, workspace.bytes());
  return job.loss(workspace.bytes());
}

}  // namespace blockattn::inline BLOCKATTN_ABI
