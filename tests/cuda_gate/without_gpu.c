/* The CUDA plug-in on a machine that can't run it: no devices, a sentence that says why, no crash.
   without_gpu [REASON]: the sentence also has this text. Exit 77 (skipped) where there is a GPU, and no reason was
   asked for. */
#include <stdio.h>
#include <string.h>

#include "reformer_native.h"

static int failures;

static void expect(int ok, const char* what) {
  if (ok) return;
  printf("FAILED: %s; the last error is: %s\n", what, rfn_last_error());
  ++failures;
}

static void expect_reason(const char* reason) {
  const char* const said = rfn_last_error();
  expect(strncmp(said, "CUDA is not available: ", 23) == 0, "the sentence begins with: CUDA is not available");
  expect(strstr(said, "no NVIDIA driver") != NULL || strstr(said, "sees no GPU") != NULL,
         "the sentence names what is missing");
  expect(reason == NULL || strstr(said, reason) != NULL, "the sentence has the expected reason");
}

int main(int argc, char** argv) {
  const char* const reason = argc > 1 ? argv[1] : NULL;
  char text[1024];
  rfn_context* context = (rfn_context*)text;
  int32_t count = -1;
  int repeat;
  for (repeat = 0; repeat < 2; ++repeat) {
    expect(rfn_device_count(RFN_DEVICE_CUDA, &count) == RFN_OK, "rfn_device_count is RFN_OK");
    if (count > 0 && reason == NULL) {
      printf("SKIPPED: there is a GPU\n");
      return 77;
    }
    expect(count == 0, "there are no devices");
    expect_reason(reason);
    printf("%s\n", rfn_last_error());
    expect(rfn_context_create(RFN_DEVICE_CUDA, 0, 0, &context) == RFN_UNSUPPORTED,
           "rfn_context_create is RFN_UNSUPPORTED");
    expect(context == NULL, "there is no context");
    expect_reason(reason);
    expect(rfn_device_describe(RFN_DEVICE_CUDA, 0, text, sizeof text) == RFN_UNSUPPORTED,
           "rfn_device_describe is RFN_UNSUPPORTED");
    expect_reason(reason);
  }
  /* The CPU goes on working. */
  expect(rfn_context_create(RFN_DEVICE_CPU, 0, 1, &context) == RFN_OK, "a context of the CPU");
  rfn_context_destroy(context);
  expect(rfn_live_objects() == 0, "nothing is left alive");
  return failures > 0;
}
