// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/distill/logits_view.hpp>
#include <cstdint>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// The teacher's most likely tokens in place of all its logits: k = ids.size() / tokens of them for
/// each token of the batch, row after row. All other tokens of the vocabulary are one outcome, the
/// *rest*, for teacher and student alike, so that the divergence is between distributions over
/// k + 1 outcomes, a lower bound of the one over the vocabulary. With k = vocabulary there is no
/// rest.
template <class C = float>
struct top_k_teacher {
  /// (tokens, k) token ids in [0, vocabulary), rising within each row (see sort_top_k).
  std::span<const std::int32_t> ids = {};
  /// (tokens, k) natural logs of their probabilities under softmax(teacher logits / temperature):
  /// the temperature of the options is already in them, because no other can be had from k values.
  std::span<const C> log_probabilities = {};
  /// (tokens) what the rest weighs, in [0, 1]; empty = 1 - sum of the probabilities, at least the
  /// accumulator's epsilon, which is as far as that difference tells. 0 counts as the smallest
  /// normal number, so that the reverse divergence stays finite. Numbers are used as
  /// they are, whether or not everything adds up to 1.
  std::span<const C> rest_mass = {};
};

/// The tensors of a distillation loss, one row for each predicted token. The teacher is given
/// either as `teacher` or as `top_k`. Logits are finite. Storage types mix freely below fp64.
template <storage_scalar Teacher = float,
          storage_scalar Student = Teacher,
          storage_scalar Gradient = Student>
struct distillation_arguments {
  using accumulator_type = accumulator_t<Teacher, Student, Gradient>;

  logits_view<const Teacher> teacher = {};         ///< (tokens, vocabulary), detached
  top_k_teacher<accumulator_type> top_k = {};      ///< in place of `teacher`
  logits_view<const Student> student;              ///< (tokens, vocabulary)
  std::span<const accumulator_type> weights = {};  ///< (tokens) >= 0, detached; empty = all 1
  /// (tokens) not 0: the token does not count, whatever its weight; empty = all count. Rows that do
  /// not count are not read; their gradient and token loss are 0.
  std::span<const std::uint8_t> ignored = {};
  /// (tokens) ids of the true tokens; a negative one (as -100) means that a token has no label.
  /// Needed when label_weight > 0.
  std::span<const std::int32_t> labels = {};
  /// (tokens, vocabulary), written; absent = not wanted. May be the student's logits themselves
  /// (same address and token stride), else overlaps no input.
  logits_view<Gradient> d_student = {};
  std::span<accumulator_type> token_losses = {};  ///< (tokens) l_t, written; empty = not wanted
};

}  // namespace blockattn::inline BLOCKATTN_ABI
