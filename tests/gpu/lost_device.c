/* A kernel that reads memory which is nobody's: the error is reported, the device is lost for the process, and nothing
   crashes or stays alive. A process of its own, because no other work comes after it.

     lost_device cuda|cuda_on_host */
#include "c_program.h"

int main(int argc, char** argv) {
  /* Below what a process can map, so that no device that shares the host's memory finds anything there either. */
  void* const nowhere = (void*)0x1000;
  const int on_host = argc > 1 && strcmp(argv[1], "cuda_on_host") == 0;
  const int32_t device = on_host ? RFN_DEVICE_CUDA_ON_HOST : RFN_DEVICE_CUDA;
  rfn_context *context = NULL, *second = NULL;
  rfn_stream* stream = NULL;
  rfn_layer_norm op;
  rfn_status status;
  char* memory = NULL;
  int64_t bytes = 0;

  if (rfn_context_create(device, 0, 0, &context) != RFN_OK || rfn_stream_create(context, &stream) != RFN_OK ||
      rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 4096, (void**)&memory) != RFN_OK) {
    printf("FAILED: %s\n", rfn_last_error());
    return 1;
  }
  memset(&op, 0, sizeof op);
  op.struct_size = sizeof op;
  op.epsilon = 1e-5f;
  op.x = rows(memory, 4, 64);
  op.y = rows(memory + 1024, 4, 64);
  op.weight = rows(memory + 2048, 0, 64);
  op.bias = rows(memory + 2304, 0, 64);
  expect(rfn_fill_zero(stream, memory, 4096) == RFN_OK, "memory of the device");
  expect(rfn_layer_norm_workspace(context, &op, RFN_PASS_FORWARD, &bytes) == RFN_OK && bytes == 0, "no workspace");
  expect(rfn_layer_norm_forward(stream, &op, NULL, 0) == RFN_OK, "an op on memory of the device");
  expect(rfn_stream_synchronize(stream) == RFN_OK, "which works");

  op.x = rows(nowhere, 4, 64);
  status = rfn_layer_norm_forward(stream, &op, NULL, 0);
  if (status == RFN_OK) status = rfn_stream_synchronize(stream);
  expect(status == RFN_DEVICE_ERROR, "memory that is nobody's is a device error");
  printf("%s\n", rfn_last_error());
  op.x = rows(memory, 4, 64);
  expect(rfn_layer_norm_forward(stream, &op, NULL, 0) == RFN_DEVICE_LOST, "after which the device is lost");
  expect(rfn_stream_synchronize(stream) == RFN_DEVICE_LOST, "to every call");
  expect(rfn_context_create(device, 0, 0, &second) != RFN_OK && second == NULL, "and to new contexts");
  printf("%s\n", rfn_last_error());

  rfn_stream_destroy(stream);
  rfn_buffer_free(context, RFN_MEMORY_DEVICE, memory);
  rfn_context_destroy(context);
  expect(rfn_live_objects() == 0, "nothing is left alive");
  return failures > 0;
}
