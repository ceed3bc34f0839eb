// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_attend.hpp"

#include <blockattn/cuda/attend_blocks.cuh>
#include <deque>

#include "cuda/device_images.cuh"

namespace blockattn_test {

namespace {

/// The lists of a call with all keys and values on the device.
template <class T>
class sequence_images {
 public:
  explicit sequence_images(std::span<const attend_sequence<T>> sequences) {
    for (const attend_sequence<T>& sequence : sequences) {
      std::vector<key_segment<T>>& segments = segments_.emplace_back();
      for (const key_segment<T>& segment : sequence.segments) {
        segments.push_back(on_device(segment));
      }
      sequences_.push_back(
          {.queries = sequence.queries, .segments = segments, .tail = on_device(sequence.tail)});
    }
  }

  std::span<const attend_sequence<T>> sequences() const { return sequences_; }
  void bring_back() const {
    for (const auto& image : images_) image.bring_back();
  }

 private:
  key_segment<T> on_device(const key_segment<T>& host) {
    key_segment<T> segment = host;
    segment.k = images_.emplace_back(host.k).view();
    segment.v = images_.emplace_back(host.v).view();
    return segment;
  }

  std::deque<tensor_image<const T>> images_;
  std::deque<std::vector<key_segment<T>>> segments_;
  std::vector<attend_sequence<T>> sequences_;
};

}  // namespace

template <class T, class O>
void attend_on_device(const attend_arguments<T, T, T, O>& arguments,
                      const attend_options& options) {
  const tensor_image q(arguments.q);
  const tensor_image o(arguments.o);
  const tensor_image lse(as_heads(arguments.lse));
  const tensor_image sinks(as_heads(arguments.sink_logits));
  const sequence_images<T> keys(arguments.sequences);
  const attend_arguments<T, T, T, O> device{
      .q = q.view(),
      .o = o.view(),
      .lse = as_lse(lse.view(), arguments.lse),
      .sink_logits = {sinks.view().data, arguments.sink_logits.size()},
      .sequences = keys.sequences()};
  const cuda::attend_sizes sizes = cuda::attend_memory(device, options);
  std::vector<std::byte> staging(static_cast<std::size_t>(sizes.staging));
  run_in_workspace(nullptr, sizes.workspace, [&](std::span<std::byte> workspace) {
    cuda::attend_blocks(device, options, workspace, staging, nullptr);
  });
  keys.bring_back();
  q.bring_back();
  o.bring_back();
  lse.bring_back();
  sinks.bring_back();
}

template void attend_on_device(const attend_arguments<bfloat16>&, const attend_options&);
template void attend_on_device(const attend_arguments<bfloat16, bfloat16, bfloat16, float>&,
                               const attend_options&);
template void attend_on_device(const attend_arguments<float16>&, const attend_options&);

void refused_attend(const attend_arguments<bfloat16>& arguments,
                    const attend_options& options,
                    index_t missing_workspace,
                    index_t missing_staging,
                    index_t staging_offset) {
  const cuda::attend_sizes sizes = cuda::attend_memory(arguments, options);
  const workspace_buffer staging(sizes.staging + staging_offset);
  // No byte of it is touched by a call that is refused.
  auto* const nowhere = reinterpret_cast<std::byte*>(std::uintptr_t{4096});
  const std::span workspace(nowhere, static_cast<std::size_t>(sizes.workspace - missing_workspace));
  if (missing_workspace > 0 || missing_staging > 0 || staging_offset > 0) {
    const auto bytes = static_cast<std::size_t>(sizes.staging - missing_staging);
    cuda::attend_blocks(arguments, options, workspace,
                        staging.bytes().subspan(static_cast<std::size_t>(staging_offset), bytes),
                        nullptr);
  }
}

}  // namespace blockattn_test
