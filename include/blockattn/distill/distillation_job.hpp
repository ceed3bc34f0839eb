// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/workspace.hpp>
#include <blockattn/distill/distillation_arguments.hpp>
#include <blockattn/distill/distillation_checks.hpp>
#include <blockattn/distill/distillation_options.hpp>
#include <blockattn/distill/gradient_row.hpp>
#include <blockattn/distill/jensen_shannon_row.hpp>
#include <blockattn/distill/kl_row.hpp>
#include <blockattn/distill/top_k_row.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// A checked distillation loss, cut into tasks of one phase; run it like a forward_job. A gradient
/// needs room for up to three rows of the vocabulary for each worker: the exponentials are kept
/// until their sums are known, because computing them again costs more than reading them.
template <class Teacher, class Student, class Gradient, class Arch>
class distillation_job {
 public:
  using C = accumulator_t<Teacher, Student, Gradient>;

  distillation_job(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                   const distillation_options& options) noexcept
      : arguments_(arguments), options_(options), total_weight_(options.total_weight) {
    const index_t tokens = arguments.student.tokens;
    const index_t vocabulary = arguments.student.vocabulary;
    if (tokens > 0) k_ = static_cast<index_t>(arguments.top_k.ids.size()) / tokens;
    if (total_weight_ == 0) {
      for (index_t token = 0; token < tokens; ++token) total_weight_ += weight_of(token);
    }
    detail::workspace_layout shared;
    shared.take<double>(tokens);
    shared_size_ = shared.size();

    detail::workspace_layout worker;
    const index_t terms = arguments.d_student ? vocabulary : 0;
    const index_t chunks = ceil_divide(terms, detail::logits_chunk);
    first_ = {worker.take<C>(arguments.teacher && distills() ? terms : 0), worker.take<C>(chunks)};
    second_ = {worker.take<C>(std::is_same_v<Gradient, C> ? 0 : terms), worker.take<C>(chunks)};
    labels_ = {worker.take<C>(has_label_terms() ? terms : 0), worker.take<C>(chunks)};
    student_logits_ = worker.take<C>(k_);
    gradients_ = worker.take<double>(k_);
    worker_size_ = worker.size();
  }

  static constexpr index_t phases() noexcept { return 1; }
  index_t tasks(index_t /*phase*/) const noexcept {
    return ceil_divide(arguments_.student.tokens, task_tokens());
  }
  index_t workspace_size(index_t concurrency) const noexcept {
    return detail::saturating_add(shared_size_,
                                  detail::saturating_multiply(concurrency, worker_size_));
  }
  void run(index_t /*phase*/,
           index_t task,
           index_t worker,
           std::span<std::byte> workspace) const noexcept {
    double* const losses = detail::piece<double>(workspace, 0);
    const auto scratch =
        workspace.subspan(static_cast<std::size_t>(shared_size_ + worker * worker_size_));
    const index_t end = std::min(arguments_.student.tokens, (task + 1) * task_tokens());
    for (index_t token = task * task_tokens(); token < end; ++token) {
      losses[token] = run_token(token, scratch);
      if (!arguments_.token_losses.empty())
        arguments_.token_losses[static_cast<std::size_t>(token)] = static_cast<C>(losses[token]);
    }
  }

  /// sum_t w_t l_t / sum_t w_t, in token order, once the phase has run in this workspace.
  double loss(std::span<const std::byte> workspace) const noexcept {
    const auto* const losses = reinterpret_cast<const double*>(workspace.data());
    double sum = 0;
    for (index_t token = 0; token < arguments_.student.tokens; ++token)
      sum += weight_of(token) * losses[token];
    return total_weight_ > 0 ? sum / total_weight_ : 0;
  }
  /// Calls visit(name, view) for every tensor of the call.
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    detail::visit_memory(arguments_, visit);
  }

 private:
  /// Byte offsets of stored terms in a worker's scratch.
  struct terms_offsets {
    index_t values = 0;
    index_t factors = 0;
  };
  /// What the terms of one token's loss count in its gradient.
  struct gradient_weights {
    double divergence = 0;  ///< by the scaled logits
    double label = 0;
  };

  /// Short rows share a task.
  index_t task_tokens() const noexcept {
    constexpr index_t task_logits = 16384;
    return std::max<index_t>(1, task_logits / std::max<index_t>(1, arguments_.student.vocabulary));
  }
  bool distills() const noexcept { return options_.label_weight < 1; }
  bool has_label_terms() const noexcept {
    return options_.label_weight > 0 && distills() && options_.temperature != 1;
  }
  double weight_of(index_t token) const noexcept {
    const auto t = static_cast<std::size_t>(token);
    if (!arguments_.ignored.empty() && arguments_.ignored[t] != 0) return 0;
    return arguments_.weights.empty() ? 1.0 : static_cast<double>(arguments_.weights[t]);
  }
  index_t label_of(index_t token) const noexcept {
    return options_.label_weight > 0 ? arguments_.labels[static_cast<std::size_t>(token)] : -1;
  }
  C scale() const noexcept { return static_cast<C>(std::numbers::log2e / options_.temperature); }

  detail::stored_terms<C, Arch> terms_in(std::span<std::byte> scratch,
                                         terms_offsets at) const noexcept {
    return {detail::piece<C>(scratch, at.values), detail::piece<C>(scratch, at.factors)};
  }

  /// Room for what a token's gradient will be the sum of; nothing without a gradient.
  detail::gradient_terms<C, Arch> terms_of(index_t token,
                                           bool has_label,
                                           std::span<std::byte> scratch) const noexcept {
    detail::gradient_terms<C, Arch> terms;
    if (!arguments_.d_student) return terms;
    terms.second = terms_in(scratch, second_);
    if constexpr (std::is_same_v<Gradient, C>)
      terms.second.values = arguments_.d_student.row(token);
    if (arguments_.teacher && distills()) terms.first = terms_in(scratch, first_);
    if (has_label && has_label_terms()) terms.labels = terms_in(scratch, labels_);
    return terms;
  }

  detail::top_k_row<C, Arch> top_k_of(index_t token, std::span<std::byte> scratch) const noexcept {
    if (k_ == 0 || !distills()) return {};
    const auto k = static_cast<std::size_t>(k_);
    const auto begin = static_cast<std::size_t>(token) * k;
    const detail::top_k_row<C, Arch> top_k{
        .ids = arguments_.top_k.ids.subspan(begin, k),
        .teacher_logs = arguments_.top_k.log_probabilities.subspan(begin, k),
        .log_rest_mass = detail::log_rest_mass<C, Arch>(arguments_.top_k, token, k_),
        .student_logits = {detail::piece<C>(scratch, student_logits_), k},
        .gradients = {detail::piece<double>(scratch, gradients_), k}};
    for (std::size_t j = 0; j < k; ++j) {
      top_k.student_logits[j] =
          static_cast<C>(load_scalar(arguments_.student.row(token)[top_k.ids[j]]));
    }
    return top_k;
  }

  /// l_t, and the token's row of the gradient.
  double run_token(index_t token, std::span<std::byte> scratch) const noexcept {
    const index_t vocabulary = arguments_.student.vocabulary;
    const Student* const row = arguments_.student.row(token);
    Gradient* const d_row = arguments_.d_student ? arguments_.d_student.row(token) : nullptr;
    const index_t label = label_of(token);
    const double weight = weight_of(token);
    if (weight == 0 || (label < 0 && !distills())) {
      for (index_t i = 0; d_row != nullptr && i < vocabulary; ++i) store_scalar(d_row[i], C(0));
      return 0;
    }
    const double share = options_.label_weight;
    const double temperature = options_.temperature;
    const double factor =
        options_.temperature_factor == temperature_factor::squared ? temperature * temperature : 1;
    const double row_weight = options_.gradient_scale * weight / total_weight_;
    const gradient_weights weights{.divergence = row_weight * (1 - share) * factor / temperature,
                                   .label = label >= 0 ? row_weight * share : 0};
    const auto terms = terms_of(token, label >= 0, scratch);
    const auto top_k = top_k_of(token, scratch);

    // What reads the student's row comes first: `terms` may lie in it.
    const C label_logit = label >= 0 ? static_cast<C>(load_scalar(row[label])) : C(0);
    const bool shares_pass = distills() && temperature == 1;
    double label_loss = 0;
    if (label >= 0 && !shares_pass) {
      constexpr auto unit_scale = static_cast<C>(std::numbers::log2e);
      const auto& keep = distills() ? terms.labels : terms.second;
      const auto sum = detail::sum_row<C, Arch>(row, vocabulary, unit_scale, keep);
      label_loss = -std::numbers::ln2 * sum.log2_probability(label_logit, unit_scale);
      if (d_row != nullptr) detail::set_factors(keep, vocabulary, sum, unit_scale, weights.label);
    }
    double nats = 0;
    if (distills()) {
      const gradient_weights of_pass{weights.divergence, shares_pass ? weights.label : 0};
      const distilled_row distilled = distill(token, of_pass, terms, top_k);
      nats = distilled.divergence;
      if (label >= 0 && shares_pass)
        label_loss = -std::numbers::ln2 * distilled.student.log2_probability(label_logit, scale());
    }

    if (d_row != nullptr) {
      const auto label_weight = static_cast<C>(weights.label);
      const C at_label = label >= 0 ? terms.at(label) - label_weight : C(0);
      detail::write_gradient(terms, vocabulary, d_row);
      if (label >= 0) store_scalar(d_row[label], at_label);
      for (std::size_t j = 0; j < top_k.ids.size(); ++j) {
        const index_t id = top_k.ids[j];
        store_scalar(d_row[id], static_cast<C>(top_k.gradients[j]) + terms.labels.at(id) -
                                    (id == label ? label_weight : C(0)));
      }
    }
    return (1 - share) * factor * nats + share * label_loss;
  }

  /// The divergence of a row in nats, and the student's sum at the same temperature.
  struct distilled_row {
    double divergence = 0;
    detail::row_sum<C, Arch> student;
  };

  distilled_row distill(index_t token,
                        const gradient_weights& weights,
                        const detail::gradient_terms<C, Arch>& terms,
                        const detail::top_k_row<C, Arch>& top_k) const noexcept {
    if (!arguments_.teacher) return distill_top_k(token, weights, terms, top_k);
    switch (options_.divergence) {
      case divergence::forward_kl:
        return distill_kl<detail::forward_kl>(token, weights, terms);
      case divergence::reverse_kl:
        return distill_kl<detail::reverse_kl>(token, weights, terms);
      default:
        return distill_jensen_shannon(token, weights, terms);
    }
  }

  template <class Kind>
  distilled_row distill_kl(index_t token,
                           const gradient_weights& weights,
                           const detail::gradient_terms<C, Arch>& terms) const noexcept {
    const index_t vocabulary = arguments_.student.vocabulary;
    const auto sums =
        detail::sum_kl<Kind, C, Arch>(arguments_.teacher.row(token), arguments_.student.row(token),
                                      vocabulary, scale(), terms.first, terms.second);
    if (terms.second.values != nullptr) {
      Kind::set_gradient_factors(sums, vocabulary, scale(), weights.divergence, weights.label,
                                 terms.first, terms.second);
    }
    return {detail::kl_of<Kind>(sums), sums.student};
  }

  distilled_row distill_jensen_shannon(
      index_t token,
      const gradient_weights& weights,
      const detail::gradient_terms<C, Arch>& terms) const noexcept {
    const index_t vocabulary = arguments_.student.vocabulary;
    const Teacher* const teacher = arguments_.teacher.row(token);
    const Student* const student = arguments_.student.row(token);
    const auto teacher_sum = detail::sum_row<C, Arch>(teacher, vocabulary, scale());
    const auto student_sum = detail::sum_row<C, Arch>(student, vocabulary, scale());
    const auto sums = detail::sum_jensen_shannon<C, Arch>(
        teacher, student, vocabulary, scale(), static_cast<C>(options_.teacher_share), teacher_sum,
        student_sum, terms.first, terms.second);
    if (terms.second.values != nullptr) {
      detail::set_jensen_shannon_factors(sums, vocabulary, options_.teacher_share,
                                         weights.divergence, weights.label, terms.first,
                                         terms.second);
    }
    return {sums.divergence(options_.teacher_share), student_sum};
  }

  distilled_row distill_top_k(index_t token,
                              const gradient_weights& weights,
                              const detail::gradient_terms<C, Arch>& terms,
                              const detail::top_k_row<C, Arch>& top_k) const noexcept {
    const index_t vocabulary = arguments_.student.vocabulary;
    const detail::student_outcomes<C, Arch> student(
        detail::sum_rest<C, Arch>(arguments_.student.row(token), vocabulary, top_k.ids, scale(),
                                  terms.second),
        top_k.student_logits, scale());
    const auto result = detail::top_k_divergence(top_k, student, scale(), options_);
    if (terms.second.values != nullptr) {
      for (std::size_t j = 0; j < top_k.ids.size(); ++j) {
        const double log2_q = student.all.log2_probability(top_k.student_logits[j], scale());
        top_k.gradients[j] =
            weights.divergence * top_k.gradients[j] + weights.label * std::exp2(log2_q);
      }
      const double rest = weights.divergence * result.rest_gradient +
                          weights.label * std::exp2(student.log2_rest(scale()));
      detail::set_factors(terms.second, vocabulary, student.rest, scale(), rest);
    }
    return {result.divergence, student.all};
  }

  distillation_arguments<Teacher, Student, Gradient> arguments_;
  distillation_options options_;
  double total_weight_;
  index_t k_ = 0;
  index_t shared_size_ = 0;
  index_t worker_size_ = 0;
  terms_offsets first_;
  terms_offsets second_;
  terms_offsets labels_;
  index_t student_logits_ = 0;
  index_t gradients_ = 0;
};

}  // namespace blockattn::inline BLOCKATTN_ABI
