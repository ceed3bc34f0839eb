// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#define BLOCKATTN_ERROR_HANDLER handle_error
#include <blockattn/blockattn.hpp>

#if BLOCKATTN_HAS_EXCEPTIONS
#error "this unit is to be compiled with -fno-exceptions"
#endif

void fail_without_exceptions() {
  const blockattn::index_t lengths[] = {-1};
  static_cast<void>(blockattn::block_layout::from_lengths(lengths));
}
