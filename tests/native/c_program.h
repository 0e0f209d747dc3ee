/* What the tests that are C programs share: expectations, and a tensor of one or two axes. */
#pragma once
#include <stdio.h>
#include <string.h>

#include "reformer_native.h"

static int failures;

static inline void expect(int ok, const char* what) {
  if (ok) return;
  printf("FAILED: %s; the last error is: %s\n", what, rfn_last_error());
  ++failures;
}

/* F32 [n,e], or [e] where n is 0. */
static inline rfn_tensor rows(void* data, int64_t n, int64_t e) {
  rfn_tensor t;
  memset(&t, 0, sizeof t);
  t.struct_size = sizeof t;
  t.dtype = RFN_F32;
  t.rank = n > 0 ? 2 : 1;
  t.shape[0] = n > 0 ? n : e;
  t.shape[1] = n > 0 ? e : 0;
  t.data = data;
  t.bytes = (n > 0 ? n : 1) * e * (int64_t)sizeof(float);
  return t;
}
