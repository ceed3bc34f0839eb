// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/config.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// How far the student's distribution q is from the teacher's p, in nats.
enum class divergence {
  forward_kl,      ///< KL(p || q) = sum p log(p / q): the student covers what the teacher does
  reverse_kl,      ///< KL(q || p) = sum q log(q / p): the student keeps to what the teacher likes
  jensen_shannon,  ///< b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q, b = teacher_share
};

/// What the divergence is multiplied by, T being the temperature.
enum class temperature_factor {
  squared,  ///< T^2: gradients keep their size when T changes (Hinton et al., arXiv 1503.02531)
  none,     ///< 1: the divergence of the tempered distributions as it is
};

/// The loss of token t with p = softmax(teacher / T), q = softmax(student / T):
///   l_t = (1 - label_weight) T^2 D(p, q) + label_weight (-log softmax(student)[label_t])
/// The label's term is at temperature 1, and absent where a token has no label.
struct distillation_options {
  blockattn::divergence divergence = blockattn::divergence::forward_kl;
  double teacher_share = 0.5;  ///< b of jensen_shannon, in (0, 1)
  double temperature = 1;      ///< > 0
  blockattn::temperature_factor temperature_factor = blockattn::temperature_factor::squared;
  double label_weight = 0;  ///< in [0, 1]; 1: plain cross-entropy, the teacher is not needed
  /// The divisor of sum w_t l_t, for a batch that comes in several calls; 0 = the sum of the
  /// weights of this call's tokens that count.
  double total_weight = 0;
  double gradient_scale = 1;  ///< multiplies d_student (not the loss): 16-bit gradients underflow
};

}  // namespace blockattn::inline BLOCKATTN_ABI
