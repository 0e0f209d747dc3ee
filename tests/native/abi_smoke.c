/* The header as C99: an op from C, and the layout of the structs as this compiler sees it. */
#include <math.h>
#include <stddef.h>

#include "c_program.h"

int main(void) {
  float x[2][4] = {{1, 2, 3, 4}, {-1, 1, -1, 1}}, weight[4] = {1, 1, 1, 2}, bias[4] = {0, 0, 0, 1}, y[2][4];
  const double expected0 = -1.5 / sqrt(1.25 + 1e-5), expected7 = 2 / sqrt(1 + 1e-5) + 1;
  char line[64];
  rfn_context* context = NULL;
  rfn_stream* stream = NULL;
  rfn_layer_norm op;
  int64_t bytes = -1;

  expect(rfn_abi_version() == ((RFN_ABI_MAJOR << 16) | RFN_ABI_MINOR), "rfn_abi_version");
  sprintf(line, "rfn_tensor:%d:", (int)sizeof(rfn_tensor));
  expect(strstr(rfn_abi_describe(), line) != NULL, line);
  sprintf(line, "head_group@%d\n", (int)offsetof(rfn_attention, head_group));
  expect(strstr(rfn_abi_describe(), line) != NULL, line);

  expect(rfn_context_create(RFN_DEVICE_CPU, 0, 1, &context) == RFN_OK, "rfn_context_create");
  expect(rfn_stream_create(context, &stream) == RFN_OK, "rfn_stream_create");
  memset(&op, 0, sizeof op);
  op.struct_size = sizeof op;
  op.epsilon = 1e-5f;
  op.x = rows(x[0], 2, 4);
  op.weight = rows(weight, 0, 4);
  op.bias = rows(bias, 0, 4);
  op.y = rows(y[0], 2, 4);
  expect(rfn_layer_norm_workspace(context, &op, RFN_PASS_FORWARD, &bytes) == RFN_OK, "rfn_layer_norm_workspace");
  {
    void* workspace = NULL;
    expect(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, bytes, &workspace) == RFN_OK, "rfn_buffer_allocate");
    expect(rfn_layer_norm_forward(stream, &op, workspace, bytes) == RFN_OK, "rfn_layer_norm_forward");
    expect(rfn_buffer_free(context, RFN_MEMORY_DEVICE, workspace) == RFN_OK, "rfn_buffer_free");
  }
  expect(fabs(y[0][0] - expected0) < 1e-6, "first element");
  expect(fabs(y[1][3] - expected7) < 1e-6, "last element");
  op.y.bytes -= 1;
  expect(rfn_layer_norm_forward(stream, &op, NULL, 0) == RFN_INVALID_ARGUMENT, "a short buffer is refused");
  expect(strstr(rfn_last_error(), "layer_norm: y.bytes: expected at least 32") != NULL, "and says so");
  rfn_stream_destroy(stream);
  rfn_context_destroy(context);
  expect(rfn_live_objects() == 0, "nothing is left alive");
  return failures == 0 ? 0 : 1;
}
