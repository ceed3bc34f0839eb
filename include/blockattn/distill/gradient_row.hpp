// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/distill/logits_row.hpp>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// The terms that a row's gradient is the sum of.
template <class C, class Arch>
struct gradient_terms {
  stored_terms<C, Arch> first;   ///< of teacher and student
  stored_terms<C, Arch> second;  ///< of the student
  stored_terms<C, Arch> labels;  ///< of the student at temperature 1, where that is another one

  C at(index_t i) const noexcept { return first.at(i) + second.at(i) + labels.at(i); }
};

/// out[i] = the sum of the terms at i, for a row. `second` is never absent and may lie in `out`.
template <class C, class Arch, class T>
void write_gradient(const gradient_terms<C, Arch>& terms, index_t vocabulary, T* out) noexcept {
  using v = vector<C, Arch>;
  const auto factor_of = [](const stored_terms<C, Arch>& stored) {
    return stored.values != nullptr ? *stored.factors : C(0);
  };
  for (index_t begin = 0; begin < vocabulary; begin += logits_chunk) {
    const auto first = terms.first.from(begin);
    const auto second = terms.second.from(begin);
    const auto labels = terms.labels.from(begin);
    const v first_factor(factor_of(first));
    const v second_factor(factor_of(second));
    const v label_factor(factor_of(labels));
    // Equal terms then cancel exactly, which a product and a fused multiply-add do not do.
    const bool is_difference = factor_of(first) == -factor_of(second);
    for_each_vector<C, Arch>(std::min(logits_chunk, vocabulary - begin), [&](index_t i, index_t n) {
      const v of_student = load_first<C, Arch>(second.values + i, n);
      v sum = second_factor * of_student;
      if (first.values != nullptr) {
        const v of_both = load_first<C, Arch>(first.values + i, n);
        sum = is_difference ? v(second_factor * (of_student - of_both))
                            : fmadd<C, Arch>(first_factor, of_both, sum);
      }
      if (labels.values != nullptr)
        sum = fmadd<C, Arch>(label_factor, load_first<C, Arch>(labels.values + i, n), sum);
      store_first<C, Arch>(sum, n, out + begin + i);
    });
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
