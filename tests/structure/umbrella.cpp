// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/blockattn.hpp>
