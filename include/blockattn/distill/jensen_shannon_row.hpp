// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/simd_log2.hpp>
#include <blockattn/distill/logits_row.hpp>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// KL of both distributions from their mixture m = b p + (1 - b) q, in nats.
template <class Arch>
struct jensen_shannon_sums {
  double teacher_kl = 0;  ///< KL(p || m)
  double student_kl = 0;  ///< KL(q || m)

  double divergence(double teacher_share) const noexcept {
    return std::max(0.0, teacher_share * teacher_kl + (1 - teacher_share) * student_kl);
  }
};

/// The pass over a row whose sums are known. With d = log2(q / p) and u = m / max(p, q), which lies
/// in [min(b, 1 - b), 1], log2(p / m) = -max(d, 0) - log2 u and log2(q / m) = min(d, 0) - log2 u.
/// `first` keeps q log2(q / m) and `second` q: the gradient is (1 - b) q (log(q / m) - KL(q || m)).
template <class C, class Arch, class Teacher, class Student>
jensen_shannon_sums<Arch> sum_jensen_shannon(const Teacher* teacher,
                                             const Student* student,
                                             index_t vocabulary,
                                             C scale,
                                             C teacher_share,
                                             const row_sum<C, Arch>& teacher_sum,
                                             const row_sum<C, Arch>& student_sum,
                                             const stored_terms<C, Arch>& first,
                                             const stored_terms<C, Arch>& second) noexcept {
  using v = vector<C, Arch>;
  const auto teacher_offset = static_cast<C>(-std::log2(teacher_sum.total));
  const auto student_offset = static_cast<C>(-std::log2(student_sum.total));
  const v share(teacher_share);
  const v other_share(1 - teacher_share);
  jensen_shannon_sums<Arch> sums;
  for (index_t begin = 0; begin < vocabulary; begin += logits_chunk) {
    const index_t count = std::min(logits_chunk, vocabulary - begin);
    v teacher_chunk(C(0));
    v student_chunk(C(0));
    for_each_vector<C, Arch>(count, [&](index_t i, index_t n) {
      const v log2_p = exponents_of<C, Arch>(teacher + begin + i, n, teacher_sum.reference, scale,
                                             teacher_offset);
      const v log2_q = exponents_of<C, Arch>(student + begin + i, n, student_sum.reference, scale,
                                             student_offset);
      const v d = log2_q - log2_p;
      const v smaller =
          exp2_nonpositive_by_table<C, Arch>(v(-xsimd::abs(d)));  // of p and q, by the larger
      const v u = xsimd::select(d < v(C(0)), fmadd<C, Arch>(other_share, smaller, share),
                                fmadd<C, Arch>(share, smaller, other_share));
      const v log2_u = log2_normal<C, Arch>(u);
      const v q = exp2_nonpositive_by_table<C, Arch>(log2_q);
      const v log2_q_over_m = xsimd::min(d, v(C(0))) - log2_u;
      const v log2_p_over_m = -xsimd::max(d, v(C(0))) - log2_u;
      teacher_chunk =
          fmadd<C, Arch>(exp2_nonpositive_by_table<C, Arch>(log2_p), log2_p_over_m, teacher_chunk);
      student_chunk = fmadd<C, Arch>(q, log2_q_over_m, student_chunk);
      if (second.values != nullptr) {
        store_first<C, Arch>(v(q * log2_q_over_m), n, first.values + begin + i);
        store_first<C, Arch>(q, n, second.values + begin + i);
      }
    });
    sums.teacher_kl +=
        std::numbers::ln2 * static_cast<double>(detail::reduce_add<C, Arch>(teacher_chunk));
    sums.student_kl +=
        std::numbers::ln2 * static_cast<double>(detail::reduce_add<C, Arch>(student_chunk));
  }
  return sums;
}

/// Factors of the stored terms: gradient_factor (1 - b) q (log(q / m) - KL(q || m)) + label_factor
/// q.
template <class C, class Arch>
void set_jensen_shannon_factors(const jensen_shannon_sums<Arch>& sums,
                                index_t vocabulary,
                                double teacher_share,
                                double gradient_factor,
                                double label_factor,
                                const stored_terms<C, Arch>& first,
                                const stored_terms<C, Arch>& second) noexcept {
  const double factor = gradient_factor * (1 - teacher_share);
  const index_t chunks = ceil_divide(vocabulary, logits_chunk);
  std::fill_n(first.factors, chunks, static_cast<C>(factor * std::numbers::ln2));
  std::fill_n(second.factors, chunks, static_cast<C>(label_factor - factor * sums.student_kl));
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
