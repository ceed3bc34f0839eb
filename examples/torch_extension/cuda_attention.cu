// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cuda/backward.cuh>
#include <blockattn/cuda/forward.cuh>
#include <type_traits>

#include "attention_call.hpp"

namespace block_attention {

namespace {

/// The storage types of CUDA, and the only place that lists them: f(std::type_identity<T>()).
template <class F>
void with_cuda_type(ba::storage_format format, const F& f) {
  switch (format) {
    case ba::storage_format::bf16:
      return f(std::type_identity<ba::bfloat16>());
    case ba::storage_format::fp16:
      return f(std::type_identity<ba::float16>());
    case ba::storage_format::fp32:
      return f(std::type_identity<float>());
    default:
      throw ba::error("block_attention: on CUDA q, k and v must be bfloat16, float16 or float32");
  }
}

struct uploaded_plan {
  memory lists;
  ba::cuda::device_plan plan;
};

/// Packs a plan into the host's memory and copies it to the device's. Pageable memory may go when
/// the copy has been enqueued, but not when a graph has captured it.
uploaded_plan upload(const ba::tile_plan& plan,
                     ba::index_t query_heads,
                     const allocator& allocate,
                     cudaStream_t stream) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &capture) != cudaSuccess ||
      capture != cudaStreamCaptureStatusNone) {
    throw ba::error(
        "block_attention: the stream is being captured and the mask is new to it; call it once on "
        "this stream, forward and backward, before the capture");
  }
  const auto size = static_cast<std::size_t>(ba::cuda::device_plan_size(plan, query_heads));
  uploaded_plan result = {.lists = allocate(static_cast<ba::index_t>(size))};
  std::vector<std::byte> staging(size);
  result.plan =
      ba::cuda::upload_plan(plan, query_heads, {result.lists.get(), size}, staging, stream);
  return result;
}

enum purpose : ba::index_t { for_forward, for_backward };

/// A mask's plan on the device. One for each stream: what the allocator gives belongs to the
/// stream, and the copy is done when calls that follow on the stream begin.
template <class MakePlan>
std::shared_ptr<const uploaded_plan> plan_of(const block_mask& mask,
                                             purpose purpose,
                                             const attention_call& call,
                                             const allocator& allocate,
                                             const cuda_place& place,
                                             const MakePlan& make_plan) {
  return mask.once<uploaded_plan>(
      {purpose, static_cast<ba::index_t>(call.format), call.q.head_dim, call.v.head_dim,
       call.q.heads, place.device,
       static_cast<ba::index_t>(reinterpret_cast<std::uintptr_t>(place.stream))},
      [&] { return upload(make_plan(), call.q.heads, allocate, place.stream); });
}

}  // namespace

void cuda_forward(const attention_call& call,
                  const block_mask& mask,
                  const allocator& allocate,
                  const cuda_place& place) {
  with_cuda_type(call.format, [&]<class T>(std::type_identity<T>) {
    const ba::index_t head_dim = call.q.head_dim, value_dim = call.v.head_dim;
    const auto uploaded = plan_of(mask, for_forward, call, allocate, place, [&] {
      return ba::cuda::make_tile_plan_for(mask.mask(), head_dim, value_dim, {}, call.format);
    });
    const auto size = ba::cuda::forward_workspace_size(uploaded->plan, head_dim, value_dim);
    const memory workspace = allocate(size);
    ba::cuda::forward(forward_arguments_of<T>(call), uploaded->plan, call.options,
                      {workspace.get(), static_cast<std::size_t>(size)}, place.stream);
  });
}

void cuda_backward(const attention_call& call,
                   const block_mask& mask,
                   const allocator& allocate,
                   const cuda_place& place) {
  with_cuda_type(call.format, [&]<class T>(std::type_identity<T>) {
    const auto uploaded = plan_of(mask, for_backward, call, allocate, place, [&] {
      const auto shape =
          ba::cuda::backward_tile_shape(call.q.head_dim, call.v.head_dim, call.format);
      return ba::make_tile_plan(mask.mask(), shape, {.transposed = true});
    });
    const ba::cuda::backward_mode mode{.deterministic = call.deterministic};
    const auto size = ba::cuda::backward_workspace_size(uploaded->plan, call.q.head_dim,
                                                        call.v.head_dim, call.format, mode);
    const memory workspace = allocate(size);
    ba::cuda::backward(backward_arguments_of<T>(call), uploaded->plan, call.options,
                       {workspace.get(), static_cast<std::size_t>(size)}, place.stream, mode);
  });
}

}  // namespace block_attention
