// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/distillation_kernel.cuh>
#include <blockattn/cuda/runtime.cuh>
#include <blockattn/distill/distillation_checks.hpp>
#include <limits>
#include <numbers>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// The largest vocabulary of a top-k teacher, whose bitmap then takes 64 KiB of shared memory.
inline constexpr index_t most_top_k_tokens = 1 << 19;
/// Token numbers and a tile more fit an int.
inline constexpr index_t most_tokens_of_vocabulary = 1 << 30;

/// What rows on a device add to the checks of their shape.
template <class T>
void check_device_rows(const char* function, const logits_view<T>& logits) {
  blockattn::detail::require(logits.vocabulary <= most_tokens_of_vocabulary &&
                                 logits.tokens <= std::numeric_limits<std::int32_t>::max(),
                             function, ": logits are (", logits.tokens, ", ", logits.vocabulary,
                             "), a launch takes at most (",
                             std::numeric_limits<std::int32_t>::max(), ", ",
                             most_tokens_of_vocabulary, ")");
}

/// Everything that `cuda::distillation_loss` refuses but its workspace. Reads no device memory.
template <class Teacher, class Student, class Gradient>
void check_distillation_call(const char* function,
                             const distillation_arguments<Teacher, Student, Gradient>& arguments,
                             const distillation_options& options) {
  static_assert(std::is_same_v<accumulator_t<Teacher, Student, Gradient>, float>,
                "cuda::distillation_loss: logits and gradient must be bf16, fp16 or fp32");
  blockattn::detail::check_distillation_shapes(function, arguments, options);
  check_device_rows(function, arguments.student);
  blockattn::detail::require(
      arguments.top_k.ids.empty() || arguments.student.vocabulary <= most_top_k_tokens, function,
      ": a top-k teacher over a vocabulary of ", arguments.student.vocabulary,
      " tokens, on a device they are at most ", most_top_k_tokens);
}

template <class T>
logits_rows logits_rows_of(const logits_view<T>& view) {
  return {const_cast<void*>(static_cast<const void*>(view.data)), view.token_stride};
}

/// log2(e) / temperature.
inline exponent_scale exponent_scale_of(double temperature) {
  const double exact = std::numbers::log2e / temperature;
  const auto high = static_cast<float>(exact);
  return {high, static_cast<float>(exact - static_cast<double>(high)), exact};
}

/// Places of the sums in a workspace.
struct loss_layout {
  index_t weighted_losses, total_weight, size;

  explicit loss_layout(index_t tokens) {
    blockattn::detail::workspace_layout layout;
    weighted_losses = layout.take<double>(tokens);
    total_weight = layout.take<double>(1);
    size = layout.size();
  }
};

template <class Teacher, class Student, class Gradient>
distillation_parameters distillation_parameters_of(
    const distillation_arguments<Teacher, Student, Gradient>& arguments,
    const distillation_options& options,
    std::span<std::byte> workspace) {
  using blockattn::detail::piece;
  const index_t tokens = arguments.student.tokens;
  const loss_layout layout(tokens);
  const bool distills = options.label_weight < 1;
  const double temperature = options.temperature;
  const double factor =
      options.temperature_factor == temperature_factor::squared ? temperature * temperature : 1;
  distillation_parameters p{};
  p.teacher = logits_rows_of(arguments.teacher);
  p.student = logits_rows_of(arguments.student);
  p.d_student = logits_rows_of(arguments.d_student);
  p.weights = {data_of(arguments.weights), data_of(arguments.ignored)};
  p.labels = options.label_weight > 0 ? data_of(arguments.labels) : nullptr;
  p.ids = data_of(arguments.top_k.ids);
  p.log_probabilities = data_of(arguments.top_k.log_probabilities);
  p.rest_mass = data_of(arguments.top_k.rest_mass);
  p.token_losses = data_of(arguments.token_losses);
  p.weighted_losses = piece<double>(workspace, layout.weighted_losses);
  p.total_weight = piece<double>(workspace, layout.total_weight);
  p.given_total_weight = options.total_weight;
  if (p.given_total_weight == 0 && p.weights.weights == nullptr && p.weights.ignored == nullptr)
    p.given_total_weight = static_cast<double>(tokens);
  p.vocabulary = static_cast<int>(arguments.student.vocabulary);
  if (distills && tokens > 0)
    p.k = static_cast<int>(static_cast<index_t>(arguments.top_k.ids.size()) / tokens);
  p.options = options;
  p.teacher_share = static_cast<float>(options.teacher_share);
  p.scale = exponent_scale_of(distills ? temperature : 1);
  p.unit_scale = exponent_scale_of(1);
  p.divergence_weight = (1 - options.label_weight) * factor;
  p.gradient_weight = p.divergence_weight / temperature;
  p.labels_apart = options.label_weight > 0 && distills && temperature != 1;
  return p;
}

/// Bytes of dynamic shared memory with which a device runs two ctas of a row on each processor.
inline index_t shared_bytes_of_half_a_processor(const char* function) {
  constexpr index_t reductions = 1024;  // what kernels declare themselves, and more
  int device = 0;
  require_success(cudaGetDevice(&device), function, "cudaGetDevice");
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    require_success(cudaDeviceGetAttribute(&value, name, device), function,
                    "cudaDeviceGetAttribute");
    return static_cast<index_t>(value);
  };
  const index_t half = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 -
                       attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  return std::min(half, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) - reductions;
}

/// The loss is written where no argument lies.
template <class Teacher, class Student, class Gradient>
void check_loss_apart(const char* function,
                      const distillation_arguments<Teacher, Student, Gradient>& arguments,
                      double* loss) {
  using blockattn::detail::as_rows;
  using blockattn::detail::footprint_of;
  const std::size_t count = loss == nullptr ? 0 : 1;
  blockattn::detail::check_apart(
      function, {{"loss", footprint_of(std::span(loss, count))}},
      {{"teacher", footprint_of(as_rows(arguments.teacher))},
       {"student", footprint_of(as_rows(arguments.student))},
       {"d_student", footprint_of(as_rows(arguments.d_student))},
       {"top_k.ids", footprint_of(arguments.top_k.ids)},
       {"top_k.log_probabilities", footprint_of(arguments.top_k.log_probabilities)},
       {"top_k.rest_mass", footprint_of(arguments.top_k.rest_mass)},
       {"weights", footprint_of(arguments.weights)},
       {"ignored", footprint_of(arguments.ignored)},
       {"token_losses", footprint_of(arguments.token_losses)},
       {"labels", footprint_of(arguments.labels)}});
}

/// Enqueues one cta for each token.
template <class Row, class Pieces>
void launch_rows(const char* function,
                 distillation_parameters p,
                 index_t tokens,
                 index_t passes,
                 cudaStream_t stream) {
  const index_t bitmap = p.k > 0 ? 4 * bitmap_words(p.vocabulary) : 0;
  const index_t room = shared_bytes_of_half_a_processor(function) - bitmap;
  const index_t tiles = ceil_divide(p.vocabulary, Pieces::tile);
  if (passes > 1)
    p.kept = static_cast<int>(std::clamp<index_t>(room / Pieces::tile_bytes, 0, tiles));
  const auto shared_bytes = static_cast<int>(bitmap + p.kept * Pieces::tile_bytes);
  const auto kernel = distillation_kernel<Row, Pieces>;
  require_success(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
      function, "reserving shared memory");
  require_success(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared),
                  function, "preferring shared memory");
  kernel<<<static_cast<unsigned>(tokens), token_threads, shared_bytes, stream>>>(p);
  require_success(cudaGetLastError(), function, "the launch");
}

/// Enqueues the rows of a checked call with the kernel of its divergence.
template <class Teacher, class Student, class Gradient>
void launch_distillation(const char* function,
                         const distillation_parameters& p,
                         index_t tokens,
                         cudaStream_t stream) {
  using without_teacher = row_pieces<absent_values, Student, Gradient>;
  using with_teacher = row_pieces<Teacher, Student, Gradient>;
  using fewer_registers = row_pieces<Teacher, Student, Gradient, 4>;
  const index_t passes = p.d_student.data != nullptr ? 2 : 1;
  if (p.options.label_weight == 1)
    return launch_rows<label_row, without_teacher>(function, p, tokens, passes, stream);
  if (p.k > 0)
    return launch_rows<top_k_row<Student>, without_teacher>(function, p, tokens, passes, stream);
  switch (p.options.divergence) {
    case divergence::forward_kl:
      return launch_rows<kl_row<forward_kl>, with_teacher>(function, p, tokens, passes, stream);
    case divergence::reverse_kl:
      return launch_rows<kl_row<reverse_kl>, with_teacher>(function, p, tokens, passes, stream);
    default:
      return launch_rows<jensen_shannon_row, fewer_registers>(function, p, tokens, passes + 1,
                                                              stream);
  }
}

}  // namespace detail

/// Bytes of device memory, aligned to workspace_alignment, that `distillation_loss` needs for a
/// batch of so many tokens.
inline index_t distillation_loss_workspace_size(index_t tokens) {
  blockattn::detail::require(tokens >= 0, "cuda::distillation_loss_workspace_size: tokens is ",
                             tokens, ", must not be negative");
  return detail::loss_layout(tokens).size;
}

/// `blockattn::distillation_loss` on the device, with all its options:
///   *loss = L = sum_t w_t l_t / sum_t w_t over the tokens t that count, l_t as in
///               distillation_options,
///   d_student = gradient_scale * dL / d student.
/// All memory that the arguments name, `loss` and the workspace are device memory; `loss` is null
/// when it is not wanted. Logits and gradient are bf16, fp16 or fp32, in any mixture; rows may lie
/// anywhere (fastest when each begins at a multiple of 16 bytes). The gradient may take the place
/// of the student's logits. Equals reference::distillation_loss: sums over a row are fp32, over
/// tokens fp64. Same inputs, same bits, in place or not, with or without a gradient; where rows of
/// logits are aligned otherwise, sums round otherwise.
///
/// Only enqueues on `stream`; allocates nothing. One cta for each token reads teacher and student
/// twice (jensen_shannon thrice), the first tiles of a row from shared memory after the first pass,
/// and writes the gradient; tokens that do not count are not read. A top-k teacher's vocabulary has
/// at most 2^19 tokens. O(tokens * vocabulary).
///
/// Throws `error` on shapes that disagree, options out of range, null or overlapping rows and a
/// small or misaligned workspace; nothing has been enqueued then. What lies in device memory is not
/// checked: weights and what top_k holds must be as distillation_arguments says. A label outside
/// the vocabulary makes its token's loss NaN, such an id its token's row too; neither is followed.
template <class Teacher = float, class Student = Teacher, class Gradient = Student>
void distillation_loss(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                       const distillation_options& options,
                       double* loss,
                       std::span<std::byte> workspace,
                       cudaStream_t stream) {
  constexpr const char* function = "cuda::distillation_loss";
  detail::check_distillation_call(function, arguments, options);
  detail::check_loss_apart(function, arguments, loss);
  const index_t tokens = arguments.student.tokens;
  blockattn::detail::check_workspace(function, workspace, distillation_loss_workspace_size(tokens));
  blockattn::detail::visit_memory(
      arguments, blockattn::detail::workspace_check(function, workspace,
                                                    distillation_loss_workspace_size(tokens)));
  const auto p = detail::distillation_parameters_of(arguments, options, workspace);
  if (p.given_total_weight == 0) {
    detail::sum_weights_kernel<>
        <<<1, detail::token_threads, 0, stream>>>(p.weights, tokens, p.total_weight);
    detail::require_success(cudaGetLastError(), function, "the launch of the weights' sum");
  }
  if (tokens > 0) {
    detail::launch_distillation<detail::stored_type<format_of<Teacher>>,
                                detail::stored_type<format_of<Student>>,
                                detail::stored_type<format_of<Gradient>>>(function, p, tokens,
                                                                          stream);
  }
  if (loss == nullptr) return;
  detail::mean_loss_kernel<><<<1, detail::token_threads, 0, stream>>>(
      p.weighted_losses, tokens, p.given_total_weight, p.total_weight, loss);
  detail::require_success(cudaGetLastError(), function, "the launch of the losses' sum");
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda
