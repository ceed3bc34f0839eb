// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"

#include <blockattn/cuda/backward.cuh>
#include <blockattn/cuda/forward.cuh>

#include "cuda/device_images.cuh"

namespace blockattn_test {

namespace {

/// The plans of masks in the tiles that the kernels take.
std::vector<tile_plan> make_plans(const head_masks& masks,
                                  const tile_shape& shape,
                                  const plan_options& options = {}) {
  std::vector<tile_plan> plans;
  for (const attention_mask& mask : masks.masks) {
    plans.push_back(make_tile_plan(mask, shape, options));
  }
  return plans;
}

/// Uploads the plans of masks, calls `enqueue(plan, workspace, stream)` with a workspace of
/// `size_of(plan)` bytes that hold NaN, waits, and sees that nothing was written behind it.
template <class SizeOf, class Enqueue>
void run_on_device(const std::vector<tile_plan>& plans,
                   const std::vector<index_t>& head_to_mask,
                   index_t query_heads,
                   const SizeOf& size_of,
                   const Enqueue& enqueue) {
  const device_stream stream;
  const cuda::owned_device_plan plan(plan_set(plans, head_to_mask), query_heads, stream);
  run_in_workspace(stream, size_of(plan.plan()), [&](std::span<std::byte> workspace) {
    enqueue(plan.plan(), workspace, stream);
  });
}

}  // namespace

bool has_cuda_device() {
  cudaDeviceProp properties;
  const bool found = cudaGetDeviceProperties(&properties, 0) == cudaSuccess;
  static_cast<void>(cudaGetLastError());
  return found && properties.major >= 8;
}

template <class Q, class K, class V, class O>
void cuda_backend::forward(const forward_arguments<Q, K, V, O>& arguments,
                           const head_masks& masks,
                           const attention_options& options) const {
  const tensor_image<const Q> q(arguments.q);
  const tensor_image<const K> k(arguments.k);
  const tensor_image<const V> v(arguments.v);
  const tensor_image<O> o(arguments.o);
  const tensor_image<float> lse(as_heads(arguments.lse));
  const tensor_image<const float> sinks(as_heads(arguments.sink_logits));
  const index_t head_dim = arguments.q.head_dim;
  const index_t value_dim = arguments.v.head_dim;
  const tile_shape shape = masks.shapes[0].queries % 2 == 1
                               ? cuda::fine_tile_shape_for(head_dim, value_dim, format_of<K>)
                               : cuda::tile_shape_for(head_dim, value_dim, format_of<K>);
  run_on_device(
      make_plans(masks, shape), masks.head_to_mask, arguments.q.heads,
      [&](const cuda::device_plan& plan) {
        return cuda::forward_workspace_size(plan, head_dim, value_dim);
      },
      [&](const cuda::device_plan& plan, std::span<std::byte> workspace, cudaStream_t stream) {
        cuda::forward(forward_arguments<Q, K, V, O>{.q = q.view(),
                                                    .k = k.view(),
                                                    .v = v.view(),
                                                    .o = o.view(),
                                                    .lse = as_lse(lse.view(), arguments.lse),
                                                    .sink_logits = {sinks.view().data,
                                                                    arguments.sink_logits.size()}},
                      plan, options, workspace, stream);
      });
  q.bring_back();
  k.bring_back();
  v.bring_back();
  o.bring_back();
  lse.bring_back();
  sinks.bring_back();
}

#define BLOCKATTN_TEST_FORWARD(Q, T, O)                                                        \
  template void cuda_backend::forward(const forward_arguments<Q, T, T, O>&, const head_masks&, \
                                      const attention_options&) const;
BLOCKATTN_TEST_FORWARD(bfloat16, bfloat16, bfloat16)
BLOCKATTN_TEST_FORWARD(bfloat16, bfloat16, float)
BLOCKATTN_TEST_FORWARD(float16, float16, float16)
BLOCKATTN_TEST_FORWARD(float16, float16, float)
BLOCKATTN_TEST_FORWARD(float16, float16, bfloat16)
BLOCKATTN_TEST_FORWARD(float, float, float)
BLOCKATTN_TEST_FORWARD(float, float, bfloat16)
BLOCKATTN_TEST_FORWARD(float, bfloat16, bfloat16)
BLOCKATTN_TEST_FORWARD(float, bfloat16, float)
BLOCKATTN_TEST_FORWARD(float, float16, float16)
BLOCKATTN_TEST_FORWARD(float16, bfloat16, bfloat16)
BLOCKATTN_TEST_FORWARD(bfloat16, float16, bfloat16)
BLOCKATTN_TEST_FORWARD(bfloat16, float, float)
#undef BLOCKATTN_TEST_FORWARD

template <class Q, class... Types>
void cuda_backend::backward(const backward_arguments<Q, Types...>& arguments,
                            const head_masks& masks,
                            const attention_options& options) const {
  const auto& a = arguments;
  const tensor_image q(a.q);
  const tensor_image k(a.k);
  const tensor_image v(a.v);
  const tensor_image o(a.o);
  const tensor_image d_o(a.d_o);
  const tensor_image lse(as_heads(a.lse));
  const tensor_image d_lse(as_heads(a.d_lse));
  const tensor_image sinks(as_heads(a.sink_logits));
  const tensor_image d_q(a.d_q);
  const tensor_image d_k(a.d_k);
  const tensor_image d_v(a.d_v);
  const tensor_image d_sinks(as_heads(a.d_sink_logits));
  const tile_shape shape = cuda::backward_tile_shape(a.q.head_dim, a.v.head_dim, format_of<Q>);
  const cuda::backward_mode mode{.deterministic = deterministic};
  run_on_device(
      make_plans(masks, shape, {.transposed = true}), masks.head_to_mask, a.q.heads,
      [&](const cuda::device_plan& plan) {
        return cuda::backward_workspace_size(plan, a.q.head_dim, a.v.head_dim, format_of<Q>, mode);
      },
      [&](const cuda::device_plan& plan, std::span<std::byte> workspace, cudaStream_t stream) {
        cuda::backward(
            backward_arguments<Q, Types...>{
                .q = q.view(),
                .k = k.view(),
                .v = v.view(),
                .o = o.view(),
                .lse = as_lse(lse.view(), a.lse),
                .d_o = d_o.view(),
                .d_q = d_q.view(),
                .d_k = d_k.view(),
                .d_v = d_v.view(),
                .d_lse = as_lse(d_lse.view(), a.d_lse),
                .sink_logits = {sinks.view().data, a.sink_logits.size()},
                .d_sink_logits = {d_sinks.view().data, a.d_sink_logits.size()}},
            plan, options, workspace, stream, mode);
      });
  const auto bring_back = [](const auto&... images) { (images.bring_back(), ...); };
  bring_back(q, k, v, o, d_o, lse, d_lse, sinks, d_q, d_k, d_v, d_sinks);
}

template void cuda_backend::backward(
    const backward_arguments<bfloat16, bfloat16, bfloat16, bfloat16, bfloat16, bfloat16, bfloat16>&,
    const head_masks&,
    const attention_options&) const;
template void cuda_backend::backward(
    const backward_arguments<bfloat16, bfloat16, bfloat16, bfloat16, float, float, float>&,
    const head_masks&,
    const attention_options&) const;
template void cuda_backend::backward(
    const backward_arguments<float16, float16, float16, float16, float16, float16, float16>&,
    const head_masks&,
    const attention_options&) const;
template void cuda_backend::backward(
    const backward_arguments<float, float, float, float, float, float, float>&,
    const head_masks&,
    const attention_options&) const;

namespace {

/// A plan that no device has: enough for a call that is refused.
cuda::device_plan plan_nowhere(const plan_set& plans, index_t query_heads) {
  const cuda::detail::plan_packer packer(plans, query_heads);
  return cuda::detail::device_plan_access::describe(packer, plans, query_heads, nullptr);
}

}  // namespace

template <class T>
void refused_backward(const backward_arguments<T>& arguments,
                      const plan_set& plans,
                      index_t query_heads,
                      const attention_options& options) {
  const cuda::device_plan plan = plan_nowhere(plans, query_heads);
  try {
    cuda::detail::check_backward_call("", arguments, plan, options);
  } catch (const error&) {
    cuda::backward(arguments, plan, options, {}, nullptr);
  }
}

template <class T>
void refused_forward(const forward_arguments<T>& arguments,
                     const plan_set& plans,
                     index_t query_heads,
                     const attention_options& options) {
  const cuda::device_plan plan = plan_nowhere(plans, query_heads);
  try {
    cuda::detail::check_forward_call("", arguments, plan, options);
  } catch (const error&) {
    cuda::forward(arguments, plan, options, {}, nullptr);
  }
}

template void refused_forward(const forward_arguments<bfloat16>&,
                              const plan_set&,
                              index_t,
                              const attention_options&);
template void refused_forward(const forward_arguments<float>&,
                              const plan_set&,
                              index_t,
                              const attention_options&);
template void refused_backward(const backward_arguments<bfloat16>&,
                               const plan_set&,
                               index_t,
                               const attention_options&);
template void refused_backward(const backward_arguments<float>&,
                               const plan_set&,
                               index_t,
                               const attention_options&);

void refused_upload(const plan_set& plans,
                    index_t query_heads,
                    std::span<std::byte> device_memory,
                    std::span<std::byte> staging) {
  const index_t size = cuda::device_plan_size(plans, query_heads);
  try {
    cuda::detail::check_upload("", device_memory, staging, size);
  } catch (const error&) {
    cuda::upload_plan(plans, query_heads, device_memory, staging, nullptr);
  }
}

index_t backward_workspace_of(const plan_set& plans,
                              index_t query_heads,
                              index_t head_dim,
                              index_t value_dim,
                              bool deterministic) {
  return cuda::backward_workspace_size(plan_nowhere(plans, query_heads), head_dim, value_dim,
                                       storage_format::bf16, {.deterministic = deterministic});
}

index_t forward_workspace_of(const plan_set& plans,
                             index_t query_heads,
                             index_t head_dim,
                             index_t value_dim) {
  return cuda::forward_workspace_size(plan_nowhere(plans, query_heads), head_dim, value_dim);
}

index_t device_plan_size(const plan_set& plans, index_t query_heads) {
  return cuda::device_plan_size(plans, query_heads);
}

tile_shape device_tile_shape(index_t head_dim, index_t value_dim, storage_format format) {
  return cuda::tile_shape_for(head_dim, value_dim, format);
}

}  // namespace blockattn_test
