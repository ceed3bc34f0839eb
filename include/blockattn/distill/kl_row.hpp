// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/distill/logits_row.hpp>

/// \file
/// Forward and reverse KL of one row. With x = log2 of the teacher's terms and y of the student's,
/// relative to the row's references, both divergences and both gradients come out of one pass:
///   KL(p || q) = ln 2 (sum p (x - y) - log2 P + log2 Q),  gradient q - p
///   KL(q || p) = ln 2 (sum q (y - x) - log2 Q + log2 P),  gradient q (log(q / p) - KL)
/// where P and Q are the sums of 2^x and 2^y.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// What one pass over a row of teacher and student has summed.
template <class C, class Arch>
struct kl_sums {
  row_sum<C, Arch> teacher;
  row_sum<C, Arch> student;
  double cross = 0;  ///< sum of 2^x (x - y) for forward_kl, of 2^y (y - x) for reverse_kl
};

/// The divergence in nats; rounding may leave it below 0, which no divergence is.
template <class Kind, class C, class Arch>
double kl_of(const kl_sums<C, Arch>& sums) noexcept {
  const double log2_p = std::log2(sums.teacher.total);
  const double log2_q = std::log2(sums.student.total);
  const double log2_ratio = Kind::weighs_teacher
                                ? sums.cross / sums.teacher.total - (log2_p - log2_q)
                                : sums.cross / sums.student.total - (log2_q - log2_p);
  return std::max(0.0, std::numbers::ln2 * log2_ratio);
}

struct forward_kl {
  static constexpr bool weighs_teacher = true;

  /// The first stored term of each token; the second is the student's.
  template <class V>
  static V first_term(const V& teacher_term, const V& /*cross_term*/) noexcept {
    return teacher_term;
  }

  /// Factors of the stored terms: gradient_factor (q - p) + label_factor q.
  template <class C, class Arch>
  static void set_gradient_factors(const kl_sums<C, Arch>& sums,
                                   index_t vocabulary,
                                   C scale,
                                   double gradient_factor,
                                   double label_factor,
                                   const stored_terms<C, Arch>& first,
                                   const stored_terms<C, Arch>& second) noexcept {
    set_factors(first, vocabulary, sums.teacher, scale, -gradient_factor);
    set_factors(second, vocabulary, sums.student, scale, gradient_factor + label_factor);
  }
};

struct reverse_kl {
  static constexpr bool weighs_teacher = false;

  template <class V>
  static V first_term(const V& /*teacher_term*/, const V& cross_term) noexcept {
    return cross_term;
  }

  /// gradient_factor q (log(q / p) - KL) + label_factor q. The logarithm is y - x of the stored
  /// terms, with the references of their chunk, and a constant of that chunk.
  template <class C, class Arch>
  static void set_gradient_factors(const kl_sums<C, Arch>& sums,
                                   index_t vocabulary,
                                   C scale,
                                   double gradient_factor,
                                   double label_factor,
                                   const stored_terms<C, Arch>& first,
                                   const stored_terms<C, Arch>& second) noexcept {
    const double mean = sums.cross / sums.student.total;
    for (index_t chunk = 0; chunk < ceil_divide(vocabulary, logits_chunk); ++chunk) {
      const double x =
          row_sum<C, Arch>::exponent(first.factors[chunk], sums.teacher.reference, scale);
      const double y =
          row_sum<C, Arch>::exponent(second.factors[chunk], sums.student.reference, scale);
      const double probability = std::exp2(y) / sums.student.total;
      const double of_log2 = gradient_factor * std::numbers::ln2;
      first.factors[chunk] = static_cast<C>(probability * of_log2);
      second.factors[chunk] =
          static_cast<C>(probability * (of_log2 * (y - x - mean) + label_factor));
    }
  }
};

/// One pass over teacher and student, Kind being forward_kl or reverse_kl; `first` and `second`
/// keep what the gradient needs.
template <class Kind, class C, class Arch, class Teacher, class Student>
kl_sums<C, Arch> sum_kl(const Teacher* teacher,
                        const Student* student,
                        index_t vocabulary,
                        C scale,
                        const stored_terms<C, Arch>& first = {},
                        const stored_terms<C, Arch>& second = {}) noexcept {
  using v = vector<C, Arch>;
  kl_sums<C, Arch> sums;
  for (index_t begin = 0; begin < vocabulary; begin += logits_chunk) {
    const index_t count = std::min(logits_chunk, vocabulary - begin);
    const double x_shift =
        sums.teacher.raise_reference(largest_of<C, Arch>(teacher + begin, count), scale);
    const double y_shift =
        sums.student.raise_reference(largest_of<C, Arch>(student + begin, count), scale);
    // x and y of the terms so far move by the shifts; the totals have shrunk already.
    sums.cross = Kind::weighs_teacher
                     ? sums.cross * std::exp2(x_shift) + sums.teacher.total * (x_shift - y_shift)
                     : sums.cross * std::exp2(y_shift) + sums.student.total * (y_shift - x_shift);

    v teacher_chunk(C(0));
    v student_chunk(C(0));
    v cross_chunk(C(0));
    for_each_vector<C, Arch>(count, [&](index_t i, index_t n) {
      const Teacher* const teacher_at = teacher + begin + i;
      const Student* const student_at = student + begin + i;
      prefetch_next_chunk(teacher_at);
      prefetch_next_chunk(student_at);
      const v x = exponents_of<C, Arch>(teacher_at, n, sums.teacher.reference, scale);
      const v y = exponents_of<C, Arch>(student_at, n, sums.student.reference, scale);
      const v p = exp2_nonpositive<C, Arch>(x);
      const v q = exp2_nonpositive<C, Arch>(y);
      const v log_ratio = Kind::weighs_teacher ? v(x - y) : v(y - x);
      const v& weighing = Kind::weighs_teacher ? p : q;
      teacher_chunk += p;
      student_chunk += q;
      cross_chunk = fmadd<C, Arch>(weighing, log_ratio, cross_chunk);
      if (second.values != nullptr) {
        store_first<C, Arch>(Kind::first_term(p, v(weighing * log_ratio)), n,
                             first.values + begin + i);
        store_first<C, Arch>(q, n, second.values + begin + i);
      }
    });
    sums.teacher.total += static_cast<double>(detail::reduce_add<C, Arch>(teacher_chunk));
    sums.student.total += static_cast<double>(detail::reduce_add<C, Arch>(student_chunk));
    sums.cross += static_cast<double>(detail::reduce_add<C, Arch>(cross_chunk));
    if (second.values != nullptr) {
      first.factors[begin / logits_chunk] = sums.teacher.reference;
      second.factors[begin / logits_chunk] = sums.student.reference;
    }
  }
  return sums;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
