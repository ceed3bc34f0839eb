// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/pack_sequences.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_dropout_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/dense_mask.hpp>

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/utils/pybind.h>  // a third of the time that torch/extension.h takes to compile
#ifdef BLOCK_ATTENTION_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>

#include "attention_call.hpp"
#include "block_mask.hpp"

/// \file
/// The Python module `_block_attention`: masks, and forward and backward on tensors.

namespace block_attention {

namespace {

using maybe_tensor = std::optional<at::Tensor>;

/// Raises ValueError with a sentence. TORCH_CHECK_VALUE does too, but walks the stack first.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw py::value_error(c10::str(parts...));
}

ba::storage_format format_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return ba::storage_format::fp64;
    case at::kFloat:
      return ba::storage_format::fp32;
    case at::kBFloat16:
      return ba::storage_format::bf16;
    case at::kHalf:
      return ba::storage_format::fp16;
    default:
      throw py::value_error(c10::str("block_attention: q, k and v are ", type,
                                     ", must be Double, Float, BFloat16 or Half"));
  }
}

at::ScalarType accumulator_of(const at::Tensor& q) {
  return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Refuses what the library's own checks cannot see once a tensor is a view.
void check(const char* name,
           const at::Tensor& t,
           std::int64_t dimensions,
           at::ScalarType type,
           const at::Tensor& q) {
  require(t.dim() == dimensions, "block_attention: ", name, " has ", t.dim(),
          " dimensions, must have ", dimensions);
  require(t.scalar_type() == type, "block_attention: ", name, " is ", t.scalar_type(), ", must be ",
          type, " as q is ", q.scalar_type());
  require(t.device() == q.device(), "block_attention: ", name, " is on ", t.device(),
          " but q is on ", q.device());
  require(t.numel() == 0 || t.stride(-1) == 1, "block_attention: the last dimension of ", name,
          " has stride ", t.stride(-1), ", must be contiguous");
}

any_tensor view_of(const at::Tensor& t) {
  return {t.data_ptr(), t.size(0), t.size(1), t.size(2), t.stride(0), t.stride(1)};
}

void* data_of(const maybe_tensor& t) { return t ? t->data_ptr() : nullptr; }

/// The part of a call that both directions have.
attention_call call_of(const at::Tensor& q,
                       const at::Tensor& k,
                       const at::Tensor& v,
                       const maybe_tensor& sink_logits,
                       std::optional<double> scale,
                       double softcap) {
  const ba::storage_format format = format_of(q.scalar_type());
  check("q", q, 3, q.scalar_type(), q);
  check("k", k, 3, q.scalar_type(), q);
  check("v", v, 3, q.scalar_type(), q);
  if (sink_logits) {
    check("sink_logits", *sink_logits, 1, accumulator_of(q), q);
    require(sink_logits->size(0) == q.size(1), "block_attention: ", sink_logits->size(0),
            " sink_logits for ", q.size(1), " query heads");
  }
  return {.format = format,
          .options = {.scale = scale, .softcap = softcap},
          .q = view_of(q),
          .k = view_of(k),
          .v = view_of(v),
          .sink_logits = data_of(sink_logits)};
}

enum class direction { forward, backward };

/// The one place that knows which devices there are. Python's lock is free meanwhile.
void run(direction way, const attention_call& call, const block_mask& mask, const at::Tensor& q) {
  const py::gil_scoped_release release;
  const allocator allocate = [&q](ba::index_t bytes) {
    const at::Tensor t = at::empty({bytes}, q.options().dtype(at::kByte));
    return memory(static_cast<std::byte*>(t.data_ptr()), [t](std::byte*) {});
  };
  if (q.is_cpu())
    return (way == direction::forward ? cpu_forward : cpu_backward)(call, mask, allocate);
  require(q.is_cuda(), "block_attention: q is on ", q.device(), ", must be on cpu or cuda");
#ifdef BLOCK_ATTENTION_CUDA
  const c10::DeviceGuard guard(q.device());
  const cuda_place place = {q.device().index(),
                            c10::cuda::getCurrentCUDAStream(q.device().index()).stream()};
  (way == direction::forward ? cuda_forward : cuda_backward)(call, mask, allocate, place);
#else
  require(false, "block_attention: q is on ", q.device(), " but this build has no CUDA");
#endif
}

std::tuple<at::Tensor, at::Tensor> forward(const block_mask& mask,
                                           const at::Tensor& q,
                                           const at::Tensor& k,
                                           const at::Tensor& v,
                                           const maybe_tensor& sink_logits,
                                           std::optional<double> scale,
                                           double softcap) {
  attention_call call = call_of(q, k, v, sink_logits, scale, softcap);
  const at::Tensor o = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  const at::Tensor lse = at::empty({q.size(0), q.size(1)}, q.options().dtype(accumulator_of(q)));
  call.o = view_of(o);
  call.lse = lse.data_ptr();
  run(direction::forward, call, mask, q);
  return {o, lse};
}

/// o and lse are those of forward.
std::tuple<at::Tensor, at::Tensor, at::Tensor, maybe_tensor> backward(
    const block_mask& mask,
    const at::Tensor& q,
    const at::Tensor& k,
    const at::Tensor& v,
    const maybe_tensor& sink_logits,
    const at::Tensor& o,
    const at::Tensor& lse,
    const at::Tensor& d_o,
    const maybe_tensor& d_lse,
    std::optional<double> scale,
    double softcap) {
  attention_call call = call_of(q, k, v, sink_logits, scale, softcap);
  check("d_o", d_o, 3, q.scalar_type(), q);
  if (d_lse) check("d_lse", *d_lse, 2, accumulator_of(q), q);
  const auto contiguous_like = [](const at::Tensor& t) {
    return at::empty(t.sizes(), t.options());
  };
  const at::Tensor d_q = contiguous_like(q), d_k = contiguous_like(k), d_v = contiguous_like(v);
  maybe_tensor d_sink_logits;
  if (sink_logits) d_sink_logits = contiguous_like(*sink_logits);
  call.o = view_of(o);
  call.lse = lse.data_ptr();
  call.d_o = view_of(d_o);
  call.d_q = view_of(d_q);
  call.d_k = view_of(d_k);
  call.d_v = view_of(d_v);
  call.d_lse = data_of(d_lse);
  call.d_sink_logits = data_of(d_sink_logits);
  call.deterministic = at::globalContext().deterministicAlgorithms();
  run(direction::backward, call, mask, q);
  return {d_q, d_k, d_v, d_sink_logits};
}

using sequences = std::vector<std::vector<ba::index_t>>;  ///< lengths of the blocks of each

ba::block_layout layout_of(const sequences& lengths, ba::index_t sink_tokens) {
  std::vector<ba::block_layout> parts;
  for (const auto& sequence : lengths) parts.push_back(ba::block_layout::from_lengths(sequence));
  return ba::with_sink_tokens(ba::with_final_block(ba::pack_sequences(parts)),
                              {.tokens_per_block = sink_tokens});
}

/// The enumerator that a string names.
template <class Enum>
Enum named(const char* argument,
           std::string_view name,
           std::initializer_list<std::pair<std::string_view, Enum>> choices) {
  std::string names;
  for (const auto& [choice, value] : choices) {
    if (choice == name) return value;
    names.append(names.empty() ? "" : ", ").append(choice);
  }
  throw py::value_error(
      c10::str("block_attention: ", argument, " is ", name, ", must be one of ", names));
}

ba::sink_visibility visibility_named(std::string_view name) {
  using enum ba::sink_visibility;
  return named<ba::sink_visibility>("sink_visibility", name,
                                    {{"own", own}, {"own_and_final", own_and_final}, {"all", all}});
}

ba::block_dropout_rule rule_named(std::string_view name) {
  using enum ba::block_dropout_rule;
  return named<ba::block_dropout_rule>("rule", name,
                                       {{"hide_pairs", hide_pairs},
                                        {"hide_context", hide_context},
                                        {"global_blocks", global_blocks},
                                        {"random_final", random_final}});
}

std::unique_ptr<block_mask> causal(ba::index_t tokens) {
  return std::make_unique<block_mask>(ba::causal_mask(tokens), layout_of({{tokens}}, 0));
}

std::unique_ptr<block_mask> blocks(const sequences& lengths,
                                   ba::index_t sink_tokens,
                                   std::string_view sink_visibility) {
  ba::block_layout layout = layout_of(lengths, sink_tokens);
  ba::attention_mask mask =
      ba::block_attention_mask(layout, {.sink_visibility = visibility_named(sink_visibility)});
  return std::make_unique<block_mask>(std::move(mask), std::move(layout));
}

std::unique_ptr<block_mask> dropout(const sequences& lengths,
                                    double keep_probability,
                                    std::uint64_t seed,
                                    std::string_view rule,
                                    bool exempt_final_block,
                                    ba::index_t sink_tokens,
                                    std::string_view sink_visibility) {
  ba::block_layout layout = layout_of(lengths, sink_tokens);
  ba::block_dropout_draw draw =
      ba::draw_block_dropout(layout, {.rule = rule_named(rule),
                                      .keep_probability = keep_probability,
                                      .seed = seed,
                                      .exempt_final_block = exempt_final_block,
                                      .sink_visibility = visibility_named(sink_visibility)});
  return std::make_unique<block_mask>(std::move(draw.mask), std::move(layout),
                                      std::move(draw.loss_tokens));
}

/// (shape) on the CPU, from bytes that are 0 or 1.
at::Tensor bool_tensor(const std::vector<std::uint8_t>& bytes, at::IntArrayRef shape) {
  const at::Tensor t = at::empty(shape, at::kBool);
  std::copy(bytes.begin(), bytes.end(), static_cast<std::uint8_t*>(t.data_ptr()));
  return t;
}

at::Tensor dense(const block_mask& mask) {
  return bool_tensor(ba::to_dense(mask.mask()),
                     {mask.mask().query_tokens(), mask.mask().key_tokens()});
}

maybe_tensor loss_tokens(const block_mask& mask) {
  if (mask.loss_tokens().empty()) return std::nullopt;
  return bool_tensor(mask.loss_tokens(), {mask.layout().tokens()});
}

/// (tokens) the source token of each row, -1 for a sink token.
at::Tensor sources(const block_mask& mask) {
  const at::Tensor t = at::empty({mask.layout().tokens()}, at::kLong);
  auto* const rows = static_cast<std::int64_t*>(t.data_ptr());
  for (ba::index_t row = 0; row < t.size(0); ++row) {
    rows[row] = mask.layout().source_of(row).value_or(-1);
  }
  return t;
}

}  // namespace

PYBIND11_MODULE(_block_attention, module) {
  py::class_<block_mask>(module, "BlockMask")
      .def_property_readonly("tokens",
                             [](const block_mask& mask) { return mask.layout().tokens(); })
      .def_property_readonly("sources", sources)
      .def_property_readonly("loss_tokens", loss_tokens)
      .def("dense", dense);
  module.def("causal", causal);
  module.def("blocks", blocks);
  module.def("dropout", dropout);
  module.def("forward", forward);
  module.def("backward", backward);
}

}  // namespace block_attention
