/* The core without a CPU backend: what it says of the CPU, and that all else of it answers. */
#include "c_program.h"

static const char* const kMissing =
    "the CPU is not available: this library was built without its CPU backend (RFN_CPU=OFF)";

int main(void) {
  char text[1024];
  rfn_context* context = (rfn_context*)text;
  rfn_attention_options options;
  int32_t count = -1, factors[8];

  expect(rfn_context_create(RFN_DEVICE_CPU, 0, 1, &context) == RFN_UNSUPPORTED, "a context is RFN_UNSUPPORTED");
  expect(strcmp(rfn_last_error(), kMissing) == 0, "and the sentence says why");
  expect(context == NULL, "there is no context");
  expect(rfn_device_describe(RFN_DEVICE_CPU, 0, text, sizeof text) == RFN_UNSUPPORTED, "nothing to describe");
  expect(strcmp(rfn_last_error(), kMissing) == 0, "and the sentence says why");
  expect(rfn_device_count(RFN_DEVICE_CPU, &count) == RFN_OK && count == 0, "there is no device");
  expect(strcmp(rfn_last_error(), kMissing) == 0, "and the sentence says why");
  expect(rfn_context_create(RFN_DEVICE_CUDA, 0, 1, &context) == RFN_UNSUPPORTED, "there is no plug-in beside it");
  expect(strncmp(rfn_last_error(), "CUDA is not available", 21) == 0, "and the sentence says so");

  expect(strstr(rfn_build_info(), "\"backends\": []") != NULL, "the build has no backend");
  expect(strstr(rfn_build_info(), kMissing) != NULL, "and says why");
  expect(strstr(rfn_abi_describe(), "rfn_tensor:") != NULL, "the structs are described");

  /* What needs no backend. */
  expect(rfn_lsh_automatic_buckets(RFN_BUCKETS_TRAX, 4096, 64, 4096, factors, &count) == RFN_OK && count == 1 &&
             factors[0] == 128,
         "automatic buckets");
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  expect(rfn_attention_describe(&options, 0, NULL) == RFN_INVALID_ARGUMENT, "what is wrong is refused");
  expect(rfn_live_objects() == 0, "nothing is left alive");
  return failures > 0;
}
