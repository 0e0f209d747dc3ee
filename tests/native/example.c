/* The example of docs/abi.md: a Reformer of one layer that learns the letters of a sentence, in C and without anything
 * but the library. Loads (checks the version, opens a device, draws parameters), runs forward, and trains; the loss is
 * printed every ten steps. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reformer_native.h"

/* B examples of T tokens, width E, H heads of size D, feed-forward width F, vocabulary V, R hash rounds, chunks of C.
 */
enum { B = 1, T = 64, E = 32, H = 2, D = 16, F = 64, V = 128, R = 2, C = 16, N = B * T, STEPS = 60 };

static rfn_context* context;
static rfn_stream* stream;

/* Every call returns a status; the message says what was wrong. */
static void check(rfn_status status) {
  if (status == RFN_OK) return;
  fprintf(stderr, "%s\n", rfn_last_error());
  exit(1);
}

static void* allocate(int64_t bytes) {
  void* memory = NULL;
  check(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, bytes, &memory));
  return memory;
}

/* A tensor with memory of its own; sizes end with 0. */
static rfn_tensor tensor(int32_t dtype, const int64_t* sizes) {
  rfn_tensor t;
  memset(&t, 0, sizeof t);
  t.struct_size = sizeof t;
  t.dtype = dtype;
  t.bytes = dtype == RFN_F64 || dtype == RFN_I64 ? 8 : 4;
  for (; sizes[t.rank] != 0; ++t.rank) {
    t.shape[t.rank] = sizes[t.rank];
    t.bytes *= sizes[t.rank];
  }
  t.data = allocate(t.bytes);
  return t;
}
#define TENSOR(dtype, ...) tensor(dtype, (const int64_t[]){__VA_ARGS__, 0})

/* The same memory seen with other sizes. */
static rfn_tensor as_rows(rfn_tensor t, int64_t rows, int64_t columns) {
  t.rank = columns == 0 ? 1 : 2;
  t.shape[0] = rows;
  t.shape[1] = columns;
  t.shape[2] = t.shape[3] = 0;
  return t;
}

/* Parameters, their gradients and moments. */
enum { MOST_PARAMETERS = 20 };
static rfn_tensor parameters[MOST_PARAMETERS], gradients[MOST_PARAMETERS], moments1[MOST_PARAMETERS],
    moments2[MOST_PARAMETERS];
static int parameter_count;

/* A new parameter, drawn from N(mean, deviation^2); `gradient` is given its gradient. */
static rfn_tensor parameter(float mean, float deviation, int64_t rows, int64_t columns, rfn_tensor* gradient) {
  const int64_t sizes[3] = {rows, columns, 0};
  const int i = parameter_count++;
  rfn_random_normal draw;
  parameters[i] = tensor(RFN_F32, sizes);
  gradients[i] = tensor(RFN_F32, sizes);
  moments1[i] = tensor(RFN_F32, sizes);
  moments2[i] = tensor(RFN_F32, sizes);
  check(rfn_fill_zero(stream, moments1[i].data, moments1[i].bytes));
  check(rfn_fill_zero(stream, moments2[i].data, moments2[i].bytes));
  memset(&draw, 0, sizeof draw);
  draw.struct_size = sizeof draw;
  draw.layer = i;
  draw.seed = 1;
  draw.site = RFN_SITE_PARAMETERS;
  draw.mean = mean;
  draw.standard_deviation = deviation;
  draw.destination = parameters[i];
  check(rfn_random_normal_forward(stream, &draw));
  *gradient = gradients[i];
  return parameters[i];
}

/* One workspace serves all ops, one after the other: it has the bytes that the neediest asks for. */
static void* workspace;
static int64_t workspace_bytes;
#define NEEDS(op, ...)                                         \
  do {                                                         \
    int64_t bytes = 0;                                         \
    check(rfn_##op##_workspace(context, __VA_ARGS__, &bytes)); \
    if (bytes > workspace_bytes) workspace_bytes = bytes;      \
  } while (0)

int main(void) {
  static const char text[] = "the quick brown fox jumps over the lazy dog and runs off again. ";
  rfn_embedding embedding;
  rfn_reversible_block block;
  rfn_final_norm norm;
  rfn_head_loss head;
  rfn_global_norm clip;
  rfn_adamw update;
  double first_loss = 0, loss = 0;
  int i;

  /* Load. */
  if (rfn_abi_version() >> 16 != RFN_ABI_MAJOR || (int)(rfn_abi_version() & 0xFFFF) < RFN_ABI_MINOR) {
    fprintf(stderr, "libreformer_native has another ABI than this program\n");
    return 1;
  }
  check(rfn_context_create(RFN_DEVICE_CPU, 0, 0, &context));
  check(rfn_stream_create(context, &stream));

  memset(&embedding, 0, sizeof embedding);
  embedding.struct_size = sizeof embedding;
  embedding.positions = RFN_POSITIONS_AXIAL;
  embedding.axes = 2;
  embedding.residual = RFN_RESIDUAL_EXACT;
  embedding.grid_exponent = -16;
  embedding.ids = TENSOR(RFN_I32, B, T);
  embedding.word = parameter(0, 0.1f, V, E, &embedding.grad_word);
  embedding.position[0] = parameter(0, 0.1f, 8, E / 2, &embedding.grad_position[0]);
  embedding.position[1] = parameter(0, 0.1f, 8, E / 2, &embedding.grad_position[1]);
  embedding.stream1 = TENSOR(RFN_F32, B, T, E);
  embedding.stream2 = TENSOR(RFN_F32, B, T, E);
  embedding.grad_stream1 = TENSOR(RFN_F32, B, T, E);
  embedding.grad_stream2 = TENSOR(RFN_F32, B, T, E);

  memset(&block, 0, sizeof block);
  block.struct_size = sizeof block;
  block.attention.struct_size = sizeof block.attention;
  block.attention.kind = RFN_ATTENTION_LSH;
  block.attention.shared_qk = 1;
  block.attention.causal = 1;
  block.attention.window = RFN_WINDOW_STRICT;
  block.attention.key_norm = RFN_KEY_NORM_RMS;
  block.attention.rounds = R;
  check(rfn_lsh_automatic_buckets(RFN_BUCKETS_TRAX, T, C, 0, block.attention.factors, &block.attention.factor_count));
  block.attention.chunks_before = 1;
  block.attention.chunk_length = C;
  block.heads = H;
  block.activation = RFN_ACTIVATION_GELU_TANH;
  block.layer_norm_epsilon = 1e-5f;
  block.residual = RFN_RESIDUAL_EXACT; /* the streams come back to the bit: nothing of the forward pass is kept */
  block.grid_exponent = -16;
  block.stream1 = embedding.stream1;
  block.stream2 = embedding.stream2;
  block.grad_stream1 = embedding.grad_stream1;
  block.grad_stream2 = embedding.grad_stream2;
  block.range_report = allocate(sizeof *block.range_report);
  block.rotations = TENSOR(RFN_F32, 1, D, R, block.attention.factors[0] / 2);
  block.parameters.struct_size = block.gradients.struct_size = sizeof block.parameters;
#define PARAMETER(name, mean, deviation, rows, columns) \
  block.parameters.name = parameter(mean, deviation, rows, columns, &block.gradients.name)
  PARAMETER(attention_norm_weight, 1, 0, E, 0);
  PARAMETER(attention_norm_bias, 0, 0, E, 0);
  PARAMETER(query, 0, 0.1f, H * D, E);
  PARAMETER(value, 0, 0.1f, H * D, E);
  PARAMETER(output, 0, 0.1f, E, H * D);
  PARAMETER(feed_forward_norm_weight, 1, 0, E, 0);
  PARAMETER(feed_forward_norm_bias, 0, 0, E, 0);
  PARAMETER(w1, 0, 0.1f, F, E);
  PARAMETER(b1, 0, 0, F, 0);
  PARAMETER(w2, 0, 0.1f, E, F);
  PARAMETER(b2, 0, 0, E, 0);

  memset(&norm, 0, sizeof norm);
  norm.struct_size = sizeof norm;
  norm.combine = RFN_COMBINE_CONCATENATE;
  norm.epsilon = 1e-5f;
  norm.stream1 = as_rows(block.stream1, N, E);
  norm.stream2 = as_rows(block.stream2, N, E);
  norm.weight = parameter(1, 0, 2 * E, 0, &norm.grad_weight);
  norm.bias = parameter(0, 0, 2 * E, 0, &norm.grad_bias);
  norm.y = TENSOR(RFN_F32, N, 2 * E);
  norm.grad_y = TENSOR(RFN_F32, N, 2 * E);
  norm.grad_stream1 = as_rows(block.grad_stream1, N, E);
  norm.grad_stream2 = as_rows(block.grad_stream2, N, E);

  memset(&head, 0, sizeof head);
  head.struct_size = sizeof head;
  head.ignore_index = -100;
  head.loss_scale = 1;
  head.x = norm.y;
  head.weight = parameter(0, 0.1f, V, 2 * E, &head.grad_weight);
  head.bias = parameter(0, 0, V, 0, &head.grad_bias);
  head.labels = TENSOR(RFN_I32, N);
  head.statistics = allocate(sizeof *head.statistics);
  head.grad_x = norm.grad_y;

  memset(&clip, 0, sizeof clip);
  clip.struct_size = sizeof clip;
  clip.max_norm = 1;
  clip.count = parameter_count;
  clip.gradients = gradients;
  clip.result = allocate(sizeof *clip.result);

  memset(&update, 0, sizeof update);
  update.struct_size = sizeof update;
  update.learning_rate = 0.01f;
  update.beta1 = 0.9f;
  update.beta2 = 0.98f;
  update.epsilon = 1e-8f;
  update.count = parameter_count;
  update.parameters = parameters;
  update.gradients = gradients;
  update.moments1 = moments1;
  update.moments2 = moments2;
  update.clip = clip.result;

  NEEDS(embedding, &embedding, RFN_PASS_FORWARD);
  NEEDS(embedding, &embedding, RFN_PASS_BACKWARD);
  NEEDS(reversible_block, &block, RFN_PASS_FORWARD);
  NEEDS(reversible_block, &block, RFN_PASS_BACKWARD);
  NEEDS(final_norm, &norm, RFN_PASS_FORWARD);
  NEEDS(final_norm, &norm, RFN_PASS_BACKWARD);
  NEEDS(head_loss, &head, RFN_PASS_BACKWARD);
  NEEDS(global_norm, &clip);
  workspace = allocate(workspace_bytes);

  { /* Each token is to tell the next. */
    int32_t ids[T], labels[T];
    for (i = 0; i < T; ++i) ids[i] = text[i];
    for (i = 0; i < T; ++i) labels[i] = i + 1 < T ? text[i + 1] : head.ignore_index;
    check(rfn_copy(stream, embedding.ids.data, ids, sizeof ids, RFN_COPY_HOST_TO_DEVICE));
    check(rfn_copy(stream, head.labels.data, labels, sizeof labels, RFN_COPY_HOST_TO_DEVICE));
  }

  for (i = 0; i < STEPS; ++i) {
    const uint64_t step = (uint64_t)i;
    rfn_random_normal rotations;
    rfn_loss_statistics statistics;
    int p;

    check(rfn_fill_zero(stream, block.range_report, sizeof *block.range_report));
    for (p = 0; p < parameter_count; ++p) check(rfn_fill_zero(stream, gradients[p].data, gradients[p].bytes));
    memset(&rotations, 0, sizeof rotations);
    rotations.struct_size = sizeof rotations;
    rotations.seed = 1;
    rotations.step = step;
    rotations.site = RFN_SITE_ROTATIONS;
    rotations.standard_deviation = 1;
    rotations.destination = block.rotations;
    check(rfn_random_normal_forward(stream, &rotations));
    embedding.step = block.step = norm.step = step;

    /* Forward. */
    check(rfn_embedding_forward(stream, &embedding, workspace, workspace_bytes));
    check(rfn_reversible_block_forward(stream, &block, workspace, workspace_bytes));
    check(rfn_final_norm_forward(stream, &norm, workspace, workspace_bytes));
    /* Loss and backward. */
    check(rfn_head_loss_backward(stream, &head, workspace, workspace_bytes));
    check(rfn_final_norm_backward(stream, &norm, workspace, workspace_bytes));
    check(rfn_reversible_block_backward(stream, &block, workspace, workspace_bytes));
    check(rfn_embedding_backward(stream, &embedding, workspace, workspace_bytes));
    /* Update. */
    check(rfn_global_norm_forward(stream, &clip, workspace, workspace_bytes));
    update.step = i + 1;
    check(rfn_adamw_step(stream, &update));

    check(rfn_copy(stream, &statistics, head.statistics, sizeof statistics, RFN_COPY_DEVICE_TO_HOST));
    check(rfn_stream_synchronize(stream));
    loss = statistics.loss / statistics.rows;
    if (i == 0) first_loss = loss;
    if (i % 10 == 0 || i == STEPS - 1)
      printf("step %d: loss %.4f, %.0f of %.0f right\n", i, loss, statistics.correct, statistics.rows);
  }

  { /* No value left the range in which the residual streams are exact. */
    rfn_range_report report;
    check(rfn_copy(stream, &report, block.range_report, sizeof report, RFN_COPY_DEVICE_TO_HOST));
    check(rfn_stream_synchronize(stream));
    if (report.count != 0) {
      fprintf(stderr, "%lld stream values left the exact range\n", (long long)report.count);
      return 1;
    }
  }
  /* (The buffers go with the process; rfn_buffer_free gives one back.) */
  rfn_stream_destroy(stream);
  rfn_context_destroy(context);
  return isfinite(loss) && loss < first_loss / 4 ? 0 : 1;
}
