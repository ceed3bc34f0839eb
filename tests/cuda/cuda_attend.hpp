// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_arguments.hpp>

#include "cuda/cuda_backend.hpp"

namespace blockattn_test {

/// `cuda::attend_blocks` on copies of all tensors, as cuda_backend makes them; what was written
/// comes back. Defined for q, k and v of bfloat16 or float16, o of the same or float.
template <class T, class O>
void attend_on_device(const attend_arguments<T, T, T, O>& arguments, const attend_options& options);

/// The same call where it refuses: `missing_workspace` and `missing_staging` bytes too few, staging
/// `staging_offset` bytes past an aligned address. Throws what it throws.
void refused_attend(const attend_arguments<bfloat16>& arguments,
                    const attend_options& options,
                    index_t missing_workspace = 0,
                    index_t missing_staging = 0,
                    index_t staging_offset = 0);

}  // namespace blockattn_test
