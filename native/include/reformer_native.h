/* reformer_native.h - the whole C ABI of ReformerNative (C99, no other header is installed).
 *
 * LSH attention and reversible residual blocks of the Reformer (Kitaev, Kaiser, Levskaya, ICLR 2020), forward and
 * backward, on a CPU backend that is linked in and a CUDA backend that is loaded on request.
 *
 * Letters used for shapes: B batch, T tokens, E model width (hidden size), H heads, D head size, F feed-forward width,
 * V vocabulary, R hash rounds, C chunk length, N rows (usually B*T). All tensors are dense and row-major.
 *
 * Rules that hold for every function
 *
 *  - Status. Every function returns rfn_status; RFN_OK is 0. On failure rfn_last_error() has one sentence that names
 *    the argument, what was expected and what was found. Outputs are then untouched unless the function says
 *    otherwise. Nothing prints, exits, aborts or throws.
 *  - Sizes are int64 and checked for overflow.
 *  - Structs that are passed in start with struct_size = sizeof(that struct). A struct of an op may grow at its end in
 *    a minor version: the size that it had before is taken too, and what has been added since is then absent. Structs
 *    inside other structs do not grow.
 *  - The comment of a field is its documentation in other languages too. `required:` marks numbers for which 0 is no
 *    choice.
 *  - An op is one struct (options, inputs, outputs) with up to three functions. NAME_workspace says how many bytes of
 *    scratch memory a pass needs; it reads shapes alone, and data may be NULL. NAME_forward and NAME_backward run it.
 *    An op of one pass has no `pass` argument; the optimizers' only pass is called NAME_step. An absent optional
 *    tensor is all zeros.
 *  - Workspaces are 64-byte aligned, in the memory of the context's device. Their contents mean nothing before and
 *    after a call. NULL will do where 0 bytes are needed.
 *  - Gradients of parameters (names grad_* of weights, biases, tables) are ADDED to what the tensor holds: zero it
 *    first with rfn_fill_zero. Gradients of activations are overwritten.
 *  - Results of a few numbers are structs in the memory of the context's device, to which an op's struct points. They
 *    have no struct_size and are aligned like their largest field.
 *  - Contents. Some tensors hold numbers of which only some are right: ids, labels, buckets, slots, cached positions,
 *    logits to draw from; their fields say which. The CPU looks before it computes: RFN_INVALID_ARGUMENT, and nothing
 *    is written. CUDA, which would have to wait in order to look, computes: nothing outside of tensors is read or
 *    written, results that do not depend on what is wrong are right, and those that do are NaN, an id -1, or, of
 *    buckets and slots, unspecified.
 *  - Calls are asynchronous with respect to the stream; the CPU backend has finished when the call returns. Pointers
 *    belong to the caller and must stay valid until the stream has passed the call. Data pointers are host memory for
 *    a CPU context, device memory for a CUDA context. No op allocates.
 *  - Randomness is Philox4x32-10 keyed by (seed, step, layer, site) with the element index as counter: no state, so a
 *    backward pass replays what its forward pass drew.
 *  - The same inputs give the same bits on every run and for every number of threads.
 *  - One thread at a time per context. rfn_last_error, version, describe and device queries are free-threaded.
 */
#ifndef REFORMER_NATIVE_H
#define REFORMER_NATIVE_H

#include <stdint.h>

#if defined(_WIN32)
#if defined(RFN_BUILD)
#define RFN_API __declspec(dllexport)
#else
#define RFN_API __declspec(dllimport)
#endif
#else
#define RFN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---------------------------------------------------------------------------------- */

#define RFN_ABI_MAJOR 2
#define RFN_ABI_MINOR 1

typedef int32_t rfn_status;
#define RFN_OK 0
#define RFN_INVALID_ARGUMENT 1 /* a value, shape, pointer or struct_size is wrong */
#define RFN_UNSUPPORTED 2      /* right in itself, not available in this backend or build; the message says why */
#define RFN_OUT_OF_MEMORY 3
#define RFN_DEVICE_ERROR 4 /* this call failed on the device */
#define RFN_DEVICE_LOST 5  /* an earlier device error was sticky; the context takes no further work */
#define RFN_INTERNAL 6     /* a bug in this library */
#define RFN_BUSY 7         /* the context is in another call, of another thread */

/* (RFN_ABI_MAJOR << 16) | RFN_ABI_MINOR of the loaded library. A caller needs the same major version and at least its
 * own minor one. */
RFN_API uint32_t rfn_abi_version(void);
/* Every public struct as "name:size:field@offset,field@offset,...", one per line, in header order. */
RFN_API const char* rfn_abi_describe(void);
/* Library version, for example "0.1.0". */
RFN_API const char* rfn_version(void);
/* One JSON object: version, compiler, simd (target in use), simd_available, blas (name, version, kernel), backends. */
RFN_API const char* rfn_build_info(void);
/* Message of this thread's last failed call; "" when none failed. Valid until the thread's next failing call. */
RFN_API const char* rfn_last_error(void);
/* Contexts, streams, events and buffers that exist now. */
RFN_API int64_t rfn_live_objects(void);

/* ---- devices, contexts, streams, memory ------------------------------------------------------ */

#define RFN_DEVICE_CPU 0
#define RFN_DEVICE_CUDA 1
/* For tests: the CUDA backend with its kernels run by the CPU, thread by thread; only where its plug-in was built. */
#define RFN_DEVICE_CUDA_ON_HOST 2

typedef struct rfn_context rfn_context; /* one device; one calling thread at a time */
typedef struct rfn_stream rfn_stream;   /* an order of work in a context; keeps its context alive */
typedef struct rfn_event rfn_event;

/* Number of devices of a type. 0 with RFN_OK when there is none; rfn_last_error then says why. */
RFN_API rfn_status rfn_device_count(int32_t device_type, int32_t* count);
/* Writes a zero-terminated JSON object (name, memory_bytes, ...) of at most capacity bytes. */
RFN_API rfn_status rfn_device_describe(int32_t device_type, int32_t device_index, char* text, int64_t capacity);

/* threads: worker threads of the CPU backend, 0 = all processors that the process may use; CUDA ignores it. *out is
 * NULL on failure. */
RFN_API rfn_status rfn_context_create(int32_t device_type, int32_t device_index, int32_t threads, rfn_context** out);
RFN_API void rfn_context_destroy(rfn_context* context); /* NULL is fine; streams made from it stay usable */
RFN_API rfn_status rfn_context_threads(const rfn_context* context, int32_t* threads);

/* What matrix products of a CUDA context (attention scores and outputs, projections) round their inputs to. Tensors
 * stay float32, sums are float32; hashing, softmax, norms, residuals and optimizers are float32 always. F32 is the
 * default and the only one of the CPU. */
#define RFN_PRECISION_F32 0
#define RFN_PRECISION_TF32 1 /* 10 bits of mantissa; this and the next two need compute capability 8.0 */
#define RFN_PRECISION_BF16 2 /* 7 bits */
#define RFN_PRECISION_F16 3  /* 10 bits, range 6e-8 .. 65504 */
/* For all later calls: backward passes need the precision of their forward passes. RFN_UNSUPPORTED where the device
 * lacks it. Like any call it needs the context for itself; rfn_context_precision may be asked at any time. */
RFN_API rfn_status rfn_context_set_precision(rfn_context* context, int32_t precision);
RFN_API rfn_status rfn_context_precision(const rfn_context* context, int32_t* precision);

/* Whether the context's backend has an op: *supported becomes 1 or 0. `function` is the name of the function that runs
 * it, such as "rfn_attention_backward". Calls of an op that a backend lacks are RFN_UNSUPPORTED. */
RFN_API rfn_status rfn_op_supported(const rfn_context* context, const char* function, int32_t* supported);

/* Bytes free and in all: of the device, or for the CPU what the process may still allocate (cgroup limits included). */
RFN_API rfn_status rfn_memory_info(const rfn_context* context, int64_t* free_bytes, int64_t* total_bytes);

RFN_API rfn_status rfn_stream_create(rfn_context* context, rfn_stream** out);
/* Uses an existing device stream (a cudaStream_t; NULL: the default stream) of the device's primary context;
 * destroying the rfn_stream leaves it alone. A stream that is being captured records the ops of this library into its
 * graph. CPU: RFN_UNSUPPORTED. */
RFN_API rfn_status rfn_stream_wrap(rfn_context* context, void* native_stream, rfn_stream** out);
RFN_API void rfn_stream_destroy(rfn_stream* stream);
/* Waits for all work of the stream and reports its errors. */
RFN_API rfn_status rfn_stream_synchronize(rfn_stream* stream);

RFN_API rfn_status rfn_event_create(rfn_context* context, rfn_event** out);
RFN_API void rfn_event_destroy(rfn_event* event);
RFN_API rfn_status rfn_event_record(rfn_event* event, rfn_stream* stream);
/* Later work of stream waits for event, which may be of another context and device, of the same type. */
RFN_API rfn_status rfn_event_wait(rfn_event* event, rfn_stream* stream);
RFN_API rfn_status rfn_event_elapsed(rfn_event* start, rfn_event* stop, double* milliseconds);

#define RFN_MEMORY_DEVICE 0 /* where the context's ops read and write */
#define RFN_MEMORY_HOST 1   /* host memory, page-locked for a CUDA context */

/* 256-byte aligned; contents undefined. bytes may be 0. */
RFN_API rfn_status rfn_buffer_allocate(rfn_context* context, int32_t memory, int64_t bytes, void** out);
RFN_API rfn_status rfn_buffer_free(rfn_context* context, int32_t memory, void* buffer); /* NULL is fine */

#define RFN_COPY_HOST_TO_DEVICE 0
#define RFN_COPY_DEVICE_TO_HOST 1
#define RFN_COPY_DEVICE_TO_DEVICE 2
/* DEVICE_TO_DEVICE: either end may be on another device of the process. */
RFN_API rfn_status rfn_copy(rfn_stream* stream, void* destination, const void* source, int64_t bytes,
                            int32_t direction);
RFN_API rfn_status rfn_fill_zero(rfn_stream* stream, void* destination, int64_t bytes);

/* ---- tensors --------------------------------------------------------------------------------- */

#define RFN_F32 1
#define RFN_F64 2
#define RFN_I32 3
#define RFN_I64 4
#define RFN_U8 5
/* Types of storage. Ops that take them, as their comments say, compute in float32 from the exact values and round what
 * they write to nearest even: past the largest number to infinity, NaN to 0x7FFF. */
#define RFN_BF16 6 /* the upper half of an F32: 8 significant bits, the range of F32 */
#define RFN_F16 7  /* IEEE 754 binary16: 11 significant bits, 6e-8 .. 65504 */

/* A dense row-major view of the caller's memory. All zeros: absent. */
typedef struct rfn_tensor {
  uint32_t struct_size;
  int32_t dtype;    /* RFN_F32 ... */
  int32_t rank;     /* 0 .. 4 */
  int32_t reserved; /* 0 */
  int64_t shape[4]; /* first rank entries; the others 0 */
  void* data;
  int64_t bytes; /* capacity at data; at least what shape needs */
} rfn_tensor;

/* For the _workspace functions of ops that have both passes. */
#define RFN_PASS_FORWARD 0
#define RFN_PASS_BACKWARD 1

/* ---- results --------------------------------------------------------------------------------- */

/* Values of residual streams that left the range in which exact residuals are exact, or are not finite. The caller
 * zeroes it before a step; every op of the step adds to `count`, and the first value seen fills the other fields. */
typedef struct rfn_range_report {
  int64_t count;
  int64_t layer;  /* that of the op; -1: the embedding. The last three mean nothing while count is 0 */
  int64_t stream; /* 1 or 2 */
  int64_t index;  /* flat, in the stream's tensor */
} rfn_range_report;

/* What rfn_head_loss says of its rows; overwritten. */
typedef struct rfn_loss_statistics {
  double loss;    /* sum over rows, in nats */
  double rows;    /* that counted */
  double correct; /* rows whose largest logit (the first of equals) is the label */
} rfn_loss_statistics;

/* What rfn_global_norm gives, and optimizers take; overwritten. */
typedef struct rfn_norm_result {
  float norm;
  float scale; /* that gradients are to be multiplied by */
} rfn_norm_result;

/* ---- random numbers -------------------------------------------------------------------------- */

/* Sites: the places of a model that draw numbers. Ops use theirs by themselves; rfn_random_normal takes any. */
#define RFN_SITE_ATTENTION_PROBABILITIES 1
#define RFN_SITE_ATTENTION_OUTPUT 2
#define RFN_SITE_FEED_FORWARD_HIDDEN 3
#define RFN_SITE_FEED_FORWARD_OUTPUT 4
#define RFN_SITE_WORD_EMBEDDING 5
#define RFN_SITE_POSITION_EMBEDDING 6
#define RFN_SITE_FINAL_NORM 7
#define RFN_SITE_ROTATIONS 8
#define RFN_SITE_PARAMETERS 9
#define RFN_SITE_SAMPLING 10
#define RFN_SITE_DATA 11

/* destination[i] = mean + standard_deviation * z_i, z_i standard normal (Box-Muller on Philox words). */
typedef struct rfn_random_normal {
  uint32_t struct_size;
  int32_t layer;
  uint64_t seed;
  uint64_t step;
  int32_t site;             /* required: RFN_SITE_* */
  float mean;               /* of the values */
  float standard_deviation; /* required: of the values */
  int32_t reserved;
  rfn_tensor destination; /* F32, any shape */
} rfn_random_normal;
RFN_API rfn_status rfn_random_normal_forward(rfn_stream* stream, const rfn_random_normal* op);

/* ---- embeddings ------------------------------------------------------------------------------ */

#define RFN_POSITIONS_NONE 0
#define RFN_POSITIONS_LEARNED 1 /* one table [max positions, E] */
/* 1 to 4 tables [s_i, e_i], sum of e_i = E; position p has row-major index (c_1 .. c_n); parts are concatenated. */
#define RFN_POSITIONS_AXIAL 2

/* How values enter the residual streams. */
#define RFN_RESIDUAL_FLOAT 0 /* plain float32 addition */
/* What is added is rounded to multiples of 2^grid_exponent, so that inverting a block gives back the same bits while
 * |stream| <= 2^(24 + grid_exponent). */
#define RFN_RESIDUAL_EXACT 1

/* e[b,t] = dropout(word[ids[b,t]]) + dropout(position[first_position + t]), rounded to the grid with EXACT residuals,
 * is written to both streams.
 * Backward: the gradient of e is grad_stream1 + grad_stream2; adds to grad_word and grad_position. */
typedef struct rfn_embedding {
  uint32_t struct_size;
  int32_t positions; /* RFN_POSITIONS_* */
  int32_t axes;      /* AXIAL: number of tables, else LEARNED 1, NONE 0 */
  float dropout;     /* 0 <= p < 1, words and positions separately */
  uint64_t seed;
  uint64_t step;
  int64_t first_position;         /* of the first token */
  int32_t residual;               /* RFN_RESIDUAL_* */
  int32_t grid_exponent;          /* EXACT, as in rfn_reversible_block */
  rfn_tensor ids;                 /* I32 [B,T], 0 <= id < V */
  rfn_tensor word;                /* F32 [V,E] */
  rfn_tensor position[4];         /* LEARNED: [0] F32 [max,E]; AXIAL: F32 [s_i,e_i] */
  rfn_tensor stream1;             /* out of forward: F32 [B,T,E] */
  rfn_tensor stream2;             /* out of forward: F32 [B,T,E]; optional */
  rfn_tensor grad_stream1;        /* backward: F32 [B,T,E] */
  rfn_tensor grad_stream2;        /* backward: F32 [B,T,E]; optional */
  rfn_tensor grad_word;           /* backward: F32 [V,E], added to */
  rfn_tensor grad_position[4];    /* backward: F32, the shapes of position, added to */
  rfn_range_report* range_report; /* optional; forward with EXACT residuals adds to it */
} rfn_embedding;
RFN_API rfn_status rfn_embedding_workspace(const rfn_context* context, const rfn_embedding* op, int32_t pass,
                                           int64_t* bytes);
RFN_API rfn_status rfn_embedding_forward(rfn_stream* stream, const rfn_embedding* op, void* workspace,
                                         int64_t workspace_bytes);
RFN_API rfn_status rfn_embedding_backward(rfn_stream* stream, const rfn_embedding* op, void* workspace,
                                          int64_t workspace_bytes);

/* ---- layer norm ------------------------------------------------------------------------------ */

/* y = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias over the last axis; epsilon > 0. Nothing is saved:
 * backward computes the statistics again. grad_x may not overlap x. x, as a residual stream, and its gradient are F32;
 * y may go to products of BF16 or F16, and its gradient come from them. */
typedef struct rfn_layer_norm {
  uint32_t struct_size;
  float epsilon;          /* required: > 0, added to the variance */
  rfn_tensor x;           /* F32 [N,E] */
  rfn_tensor weight;      /* F32 [E] */
  rfn_tensor bias;        /* F32 [E] */
  rfn_tensor y;           /* out, forward: F32, BF16 or F16 [N,E] */
  rfn_tensor grad_y;      /* backward: F32, BF16 or F16 [N,E] */
  rfn_tensor grad_x;      /* out, backward: F32 [N,E] */
  rfn_tensor grad_weight; /* backward: F32 [E], added to */
  rfn_tensor grad_bias;   /* backward: F32 [E], added to */
} rfn_layer_norm;
RFN_API rfn_status rfn_layer_norm_workspace(const rfn_context* context, const rfn_layer_norm* op, int32_t pass,
                                            int64_t* bytes);
RFN_API rfn_status rfn_layer_norm_forward(rfn_stream* stream, const rfn_layer_norm* op, void* workspace,
                                          int64_t workspace_bytes);
RFN_API rfn_status rfn_layer_norm_backward(rfn_stream* stream, const rfn_layer_norm* op, void* workspace,
                                           int64_t workspace_bytes);

/* ---- linear ---------------------------------------------------------------------------------- */

#define RFN_ACTIVATION_NONE 0
#define RFN_ACTIVATION_RELU 1
#define RFN_ACTIVATION_GELU_ERF 2  /* x Phi(x) */
#define RFN_ACTIVATION_GELU_TANH 3 /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
#define RFN_ACTIVATION_SILU 4      /* x sigmoid(x) */
#define RFN_ACTIVATION_TANH 5

/* y = activation(x weight^T + bias). Backward recomputes the pre-activation.
 *
 * x, weight, y, grad_x and grad_y have one type, that of the products' operands: F32, BF16 or F16. Sums, biases and the
 * gradients of parameters are F32. CUDA's products take operands of that type alone, so that it rounds the gradient of
 * the pre-activation to it where there is an activation; the CPU does not. The same holds for rfn_feed_forward, where
 * CUDA also rounds the hidden layer. */
typedef struct rfn_linear {
  uint32_t struct_size;
  int32_t activation;     /* RFN_ACTIVATION_* */
  rfn_tensor x;           /* F32, BF16 or F16 [N,K] */
  rfn_tensor weight;      /* [M,K], the type of x */
  rfn_tensor bias;        /* F32 [M]; optional */
  rfn_tensor y;           /* out, forward: [N,M], the type of x */
  rfn_tensor grad_y;      /* backward: [N,M], the type of x */
  rfn_tensor grad_x;      /* out, backward: [N,K], the type of x; optional */
  rfn_tensor grad_weight; /* backward: F32 [M,K], added to */
  rfn_tensor grad_bias;   /* backward: F32 [M], added to; optional */
} rfn_linear;
RFN_API rfn_status rfn_linear_workspace(const rfn_context* context, const rfn_linear* op, int32_t pass, int64_t* bytes);
RFN_API rfn_status rfn_linear_forward(rfn_stream* stream, const rfn_linear* op, void* workspace,
                                      int64_t workspace_bytes);
RFN_API rfn_status rfn_linear_backward(rfn_stream* stream, const rfn_linear* op, void* workspace,
                                       int64_t workspace_bytes);

/* ---- attention ------------------------------------------------------------------------------- */

#define RFN_ATTENTION_LSH 0   /* shared QK, hashed, sorted, chunked (paper section 2) */
#define RFN_ATTENTION_LOCAL 1 /* chunks of the sequence itself and their neighbours */
#define RFN_ATTENTION_FULL 2  /* every allowed pair */

/* LSH windows. A slot is a place in the sorted order of one (example, head, round). */
#define RFN_WINDOW_SLOTS 0       /* keys of the query's chunk and its neighbours, of any bucket (Trax, Hugging Face) */
#define RFN_WINDOW_SAME_BUCKET 1 /* the same, but only keys of the query's bucket (the paper) */
#define RFN_WINDOW_STRICT 2      /* strictly causal: keys of the query's bucket, at most chunks_before*C slots ahead */

#define RFN_DUPLICATES_NONE 0
/* logit -= log(number of rounds in which the query's window holds the key) (paper eqs. 13-16). */
#define RFN_DUPLICATES_LOG_COUNT 1

#define RFN_KEY_NORM_NONE 0
#define RFN_KEY_NORM_RMS 1 /* k / sqrt(mean(k^2) + 1e-6) */
#define RFN_KEY_NORM_L2 2  /* k / max(|k|, 1e-12) */

/* What attends to what. Forbidden pairs weigh exactly 0. With shared QK a token may attend to itself only as a last
 * resort: when no round gives it another key, its output is its own value (weight exactly 1, no dropout) and its
 * log-sum-exp is -inf. A query that is masked out, or has no key at all, gets output 0 and log-sum-exp -inf. */
typedef struct rfn_attention_options {
  uint32_t struct_size;
  int32_t kind;      /* RFN_ATTENTION_* */
  int32_t shared_qk; /* 1: keys are the normalised queries (LSH requires it); 0: own keys */
  int32_t causal;    /* 1: key position <= query position */
  int32_t window;    /* LSH: RFN_WINDOW_* */
  int32_t wrap;      /* 1: chunks of all rounds form one ring (the first chunk's predecessor is the last chunk of the
                        last round), as in the existing implementations; 0: a window ends where its round (or the
                        sequence) ends */
  int32_t repeat_chunks; /* 1: a chunk that falls into the window twice counts twice (parity); 0: once */
  int32_t duplicates;    /* LSH: RFN_DUPLICATES_* */
  int32_t key_norm;      /* RFN_KEY_NORM_* */
  int32_t rounds;        /* LSH: R >= 1; else ignored */
  int32_t factor_count;  /* LSH: 1 .. 8 */
  int32_t factors[8]; /* LSH: even numbers; buckets = their product; the first factor is the least significant digit */
  int32_t pad_bucket; /* LSH: 1: masked positions go to one more bucket, the last; 0: they are hashed like others */
  int32_t chunks_before;
  int32_t chunks_after;
  float logit_scale;     /* 0 = 1/sqrt(D) */
  float dropout;         /* on the probabilities, 0 <= p < 1 */
  int64_t chunk_length;  /* LSH, LOCAL: C >= 1 */
  int64_t padded_length; /* 0 = T rounded up to a multiple of C; else such a multiple: masked positions are imagined
                            behind the T real ones */
} rfn_attention_options;

/* Whole attention over all heads, and its stages.
 *
 *   scores         s_ij = scale q_i . k_j - log count
 *   out_i          = sum_j softmax(s_i)_j v_j over the union (as a multiset) of all rounds' windows
 *   log_sum_exp_i  = log sum over rounds and keys of exp(s_ij)
 *
 * Backward needs q, v, out, log_sum_exp, grad_out and the rotations or buckets (paper section 2 and appendix A; in
 * flash form, so that nothing of size [T, window] is stored). With P the probabilities and m dropout's multipliers:
 *
 *   ds = P (m (grad_out . v) - grad_out . out + grad_log_sum_exp)
 *   grad_q += ds k;   grad_k += ds q, through the key norm;   grad_v += P m grad_out
 *
 * Stages (LSH), and the backward passes of the last two:
 *
 *   rfn_lsh_hash      q, rotations -> buckets
 *   rfn_lsh_sort      buckets, mask -> sorted
 *   rfn_lsh_attend    q, v, buckets, sorted -> round_out, round_log_sum_exp: each round by itself
 *   rfn_lsh_combine   round_out, round_log_sum_exp -> out, log_sum_exp
 *
 * q, k, v, out and their gradients have one type: F32, BF16 or F16. What lies between stages is F32. */
typedef struct rfn_attention {
  uint32_t struct_size;
  int32_t layer;
  uint64_t seed; /* dropout */
  uint64_t step;
  rfn_attention_options options; /* what attends to what */
  rfn_tensor q;                  /* F32, BF16 or F16 [B,T,H,D]; shared QK: the one projection */
  rfn_tensor k;                  /* [B,T,H,D], the type of q; absent when shared */
  rfn_tensor v;                  /* [B,T,H,D], the type of q */
  rfn_tensor mask;               /* U8 [B,T], 1 real, 0 padding; optional */
  rfn_tensor rotations;          /* LSH: F32 [sets,D,R,sum(factors)/2], sets = 1, H (per head) or B*H */
  rfn_tensor buckets;     /* LSH: I32 [B,H,R,T], without round offset. Whole forward: out, optional. Backward: in,
                             optional (else hashed again). Padding with pad_bucket has bucket number prod(factors) */
  rfn_tensor sorted;      /* LSH stages: I32 [B,H,R,padded]: position at each slot, a permutation; positions >= T are
                             imagined padding */
  rfn_tensor out;         /* [B,T,H,D], the type of q: out of forward, in for backward */
  rfn_tensor log_sum_exp; /* F32 [B,H,T]: out of forward (optional there), in for backward */
  rfn_tensor round_out;   /* stages: F32 [R,B,T,H,D] (use shape [R*B,T,H,D]) */
  rfn_tensor round_log_sum_exp;      /* stages: F32 [R,B,H,T] */
  rfn_tensor grad_out;               /* backward: [B,T,H,D], the type of q */
  rfn_tensor grad_q;                 /* out, backward: the shape and type of q */
  rfn_tensor grad_k;                 /* out, backward: the shape and type of q; absent when shared */
  rfn_tensor grad_v;                 /* out, backward: the shape and type of q */
  rfn_tensor grad_round_out;         /* stages, backward: out of combine, in for attend: F32 [R*B,T,H,D] */
  rfn_tensor grad_round_log_sum_exp; /* stages, backward: F32 [R,B,H,T] */
  int64_t head_group;                /* heads processed together: trades workspace for speed, 0 = automatic */
} rfn_attention;
RFN_API rfn_status rfn_attention_workspace(const rfn_context* context, const rfn_attention* op, int32_t pass,
                                           int64_t* bytes);
RFN_API rfn_status rfn_attention_forward(rfn_stream* stream, const rfn_attention* op, void* workspace,
                                         int64_t workspace_bytes);
RFN_API rfn_status rfn_attention_backward(rfn_stream* stream, const rfn_attention* op, void* workspace,
                                          int64_t workspace_bytes);
/* Stage 1: buckets. All stages take the workspace of the whole op's pass: *_backward that of RFN_PASS_BACKWARD. */
RFN_API rfn_status rfn_lsh_hash(rfn_stream* stream, const rfn_attention* op, void* workspace, int64_t workspace_bytes);
/* Stage 2: sorted. */
RFN_API rfn_status rfn_lsh_sort(rfn_stream* stream, const rfn_attention* op, void* workspace, int64_t workspace_bytes);
/* Stage 3: round_out and round_log_sum_exp. */
RFN_API rfn_status rfn_lsh_attend(rfn_stream* stream, const rfn_attention* op, void* workspace,
                                  int64_t workspace_bytes);
/* Stage 4: out and log_sum_exp. */
RFN_API rfn_status rfn_lsh_combine(rfn_stream* stream, const rfn_attention* op, void* workspace,
                                   int64_t workspace_bytes);
/* Backward of stage 4: grad_round_out and grad_round_log_sum_exp. */
RFN_API rfn_status rfn_lsh_combine_backward(rfn_stream* stream, const rfn_attention* op, void* workspace,
                                            int64_t workspace_bytes);
/* Backward of stage 3: grad_q and grad_v. */
RFN_API rfn_status rfn_lsh_attend_backward(rfn_stream* stream, const rfn_attention* op, void* workspace,
                                           int64_t workspace_bytes);

/* n = 2 max(1, T div C) buckets. Up to 128 in one factor; else d = 2^ceil(log2 sqrt n), factors d and 2 (n div 2d). */
#define RFN_BUCKETS_TRAX 0
/* 2^p buckets, p = floor(log2(2 (T div C))). More than 2 max(floor(sqrt(max_positions div C)), C) of them in the
 * factors 2^(p div 2) and 2^(p - p div 2). */
#define RFN_BUCKETS_HUGGING_FACE 1
#define RFN_BUCKETS_LUCIDRAINS 2 /* T div C (even) */

/* The automatic bucket counts of the existing implementations. factors has room for 8. max_positions is used by
 * HUGGING_FACE alone. */
RFN_API rfn_status rfn_lsh_automatic_buckets(int32_t rule, int64_t length, int64_t chunk_length, int64_t max_positions,
                                             int32_t* factors, int32_t* factor_count);

/* What follows from the options of attention for one example of T tokens: sizes, and what it costs. */
typedef struct rfn_attention_geometry {
  uint32_t struct_size;
  int32_t prefix_causal;    /* 1: a token sees what it would see without the tokens after it */
  int64_t slots;            /* of one round: T and the padding that is imagined behind it */
  int64_t keys;             /* that a query sees in one round, at most */
  int64_t buckets;          /* LSH: that of padding is not counted */
  int64_t rotation_columns; /* LSH: sum(factors)/2 */
  int64_t bucket_ring;      /* LSH: W of a cache's rings */
  double pairs;             /* of query and key that one head looks at; chunks count whole */
  double multiply_adds;     /* of one head's forward pass, for each of its channels: scores, weighted sums, rotations */
} rfn_attention_geometry;
RFN_API rfn_status rfn_attention_describe(const rfn_attention_options* options, int64_t length,
                                          rfn_attention_geometry* geometry);

/* ---- feed-forward ---------------------------------------------------------------------------- */

/* y = dropout(activation(dropout(x w1^T + b1)) w2^T + b2), `chunk` rows at a time (paper eq. 10). Backward computes
 * intermediates again. Both dropouts have probability `dropout`. Types of tensors are as in rfn_linear. */
typedef struct rfn_feed_forward {
  uint32_t struct_size;
  int32_t activation; /* RFN_ACTIVATION_* */
  float dropout;      /* of both, 0 <= p < 1 */
  int32_t layer;
  uint64_t seed;
  uint64_t step;
  int64_t chunk;      /* rows at a time, 0 = automatic; changes no result beyond rounding */
  rfn_tensor x;       /* F32, BF16 or F16 [N,E] */
  rfn_tensor w1;      /* [F,E], the type of x */
  rfn_tensor b1;      /* F32 [F] */
  rfn_tensor w2;      /* [E,F], the type of x */
  rfn_tensor b2;      /* F32 [E] */
  rfn_tensor y;       /* out, forward: [N,E], the type of x */
  rfn_tensor grad_y;  /* backward: [N,E], the type of x */
  rfn_tensor grad_x;  /* out, backward: [N,E], the type of x */
  rfn_tensor grad_w1; /* backward: F32 [F,E], added to */
  rfn_tensor grad_b1; /* backward: F32 [F], added to */
  rfn_tensor grad_w2; /* backward: F32 [E,F], added to */
  rfn_tensor grad_b2; /* backward: F32 [E], added to */
} rfn_feed_forward;
RFN_API rfn_status rfn_feed_forward_workspace(const rfn_context* context, const rfn_feed_forward* op, int32_t pass,
                                              int64_t* bytes);
RFN_API rfn_status rfn_feed_forward_forward(rfn_stream* stream, const rfn_feed_forward* op, void* workspace,
                                            int64_t workspace_bytes);
RFN_API rfn_status rfn_feed_forward_backward(rfn_stream* stream, const rfn_feed_forward* op, void* workspace,
                                             int64_t workspace_bytes);

/* ---- reversible block ------------------------------------------------------------------------ */

/* Parameters of a block, or gradients of them (same shapes). Linear weights are [out, in]. */
typedef struct rfn_block_parameters {
  uint32_t struct_size;
  int32_t reserved;
  rfn_tensor attention_norm_weight;    /* F32 [E] */
  rfn_tensor attention_norm_bias;      /* F32 [E] */
  rfn_tensor query;                    /* F32 [H*D,E]; shared QK: the one projection */
  rfn_tensor key;                      /* F32 [H*D,E]; absent when shared */
  rfn_tensor value;                    /* F32 [H*D,E] */
  rfn_tensor output;                   /* F32 [E,H*D] */
  rfn_tensor output_bias;              /* F32 [E]; optional */
  rfn_tensor feed_forward_norm_weight; /* F32 [E] */
  rfn_tensor feed_forward_norm_bias;   /* F32 [E] */
  rfn_tensor w1;                       /* F32 [F,E] */
  rfn_tensor b1;                       /* F32 [F] */
  rfn_tensor w2;                       /* F32 [E,F] */
  rfn_tensor b2;                       /* F32 [E] */
} rfn_block_parameters;

/* A reversible block: attention and feed-forward as half-residuals, so that no activation is stored.
 *
 * Forward, in place (paper eq. 9):
 *
 *   stream1 += Attention(LayerNorm(stream2))
 *   stream2 += FeedForward(LayerNorm(stream1))
 *
 * Backward, in place: takes the block's outputs in stream1 and stream2 and the gradients with respect to them; leaves
 * the block's inputs and the gradients with respect to those; adds to `gradients`. With FLOAT residuals inversion
 * rounds, so hashes are not computed again: `buckets` keeps those of the forward pass.
 *
 * Memory for speed: a forward pass fills those of the kept_ tensors, attention_result and buckets that are present,
 * with what it computes anyway. What a backward pass is given of them decides how much it computes again:
 *
 *   nothing      all of the block, to subtract it from the streams
 *   streams      kept_stream1 and kept_stream2 become the block's inputs: the products with `output` and `w2` are not
 *                repeated
 *   activations  besides the streams kept_query, kept_key (unless shared), kept_value, kept_log_sum_exp, kept_hidden,
 *                attention_result and, with LSH, buckets (all, or none of the kept_ ones): no product, hash or
 *                attention is repeated; sorting, norms and activations are
 *
 * They must be those of this block's forward pass by the same backend with the same options and parameters, unchanged;
 * backward reads them only. The gradients have the same bits at every level with EXACT residuals. With FLOAT residuals
 * kept streams are the forward pass's own values, where subtraction gives back rounded ones, so that gradients differ
 * from those of an inverted block by rounding. The workspace has the same size at every level. */
typedef struct rfn_reversible_block {
  uint32_t struct_size;
  int32_t layer; /* index in the stack: random numbers and reports use it */
  uint64_t seed;
  uint64_t step;
  rfn_attention_options attention; /* what attends to what */
  int32_t heads;                   /* required: H */
  int32_t activation;              /* RFN_ACTIVATION_* */
  float layer_norm_epsilon;        /* required: > 0, added to variances */
  float attention_output_dropout;  /* 0 <= p < 1 */
  float feed_forward_dropout;      /* of both places, 0 <= p < 1 */
  int32_t residual;                /* RFN_RESIDUAL_* */
  int32_t grid_exponent;           /* EXACT: -24 .. -4, usually -16: values are multiples of 2^-16, range +-256 */
  int32_t reserved;
  int64_t feed_forward_chunk;      /* rows at a time, 0 = automatic */
  int64_t head_group;              /* heads at a time, 0 = automatic */
  rfn_tensor stream1;              /* in/out F32 [B,T,E] */
  rfn_tensor stream2;              /* in/out F32 [B,T,E] */
  rfn_tensor grad_stream1;         /* backward: in/out F32 [B,T,E] */
  rfn_tensor grad_stream2;         /* backward: in/out F32 [B,T,E] */
  rfn_tensor mask;                 /* U8 [B,T]; optional */
  rfn_tensor rotations;            /* LSH, as in rfn_attention */
  rfn_tensor buckets;              /* LSH, I32 [B,H,R,T]. FLOAT: required, out of forward, in for backward. EXACT:
                                      optional, out of forward, in for backward with kept activations */
  rfn_tensor attention_result;     /* optional out of forward, F32 [B,T,H*D], heads merged, before the output
                                      projection; in for backward with kept activations */
  rfn_range_report* range_report;  /* EXACT: required */
  rfn_block_parameters parameters; /* of both sub-layers */
  rfn_block_parameters gradients;  /* backward: of the parameters, added to */
  rfn_tensor kept_stream1;         /* optional: F32 [B,T,E], the stream before the block */
  rfn_tensor kept_stream2;         /* optional: F32 [B,T,E] */
  rfn_tensor kept_query;           /* optional: F32 [B,T,H*D], heads side by side */
  rfn_tensor kept_key;             /* optional: F32 [B,T,H*D]; absent when shared */
  rfn_tensor kept_value;           /* optional: F32 [B,T,H*D] */
  rfn_tensor kept_log_sum_exp;     /* optional: F32 [B,H,T], of attention's logits */
  rfn_tensor kept_hidden; /* optional: F32 [B*T,F], the hidden layer before its activation, in the form that this
                             backend's backward pass reads */
} rfn_reversible_block;
RFN_API rfn_status rfn_reversible_block_workspace(const rfn_context* context, const rfn_reversible_block* op,
                                                  int32_t pass, int64_t* bytes);
RFN_API rfn_status rfn_reversible_block_forward(rfn_stream* stream, const rfn_reversible_block* op, void* workspace,
                                                int64_t workspace_bytes);
RFN_API rfn_status rfn_reversible_block_backward(rfn_stream* stream, const rfn_reversible_block* op, void* workspace,
                                                 int64_t workspace_bytes);

/* ---- cached decoding ------------------------------------------------------------------------- */

/* One more token of every example through a block whose earlier tokens are in a cache, in place on its rows of the
 * streams:
 *
 *   stream1 += Attention(LayerNorm(stream2))
 *   stream2 += FeedForward(LayerNorm(stream1))
 *
 * What it attends to, of the `position` tokens before it:
 *
 *   FULL   all
 *   LOCAL  those of its chunk and of the chunks_before chunks ahead of it
 *   LSH    in each round the last chunks_before*C ones of its bucket, whatever `window` says
 *
 * and to itself by the same rules as in attention. For FULL, LSH with RFN_WINDOW_STRICT, and LOCAL whose window neither
 * wraps forwards nor repeats a chunk, that is what rfn_reversible_block computes for the last of position + 1 tokens
 * without mask and dropout, but for the rounding of sums. Other forms are not causal in their choice of keys: a later
 * token changes what an earlier one sees, so no cache can repeat them. The time of a call does not depend on position,
 * but for FULL.
 *
 * The cache of a block:
 *
 *   keys, values  rows of the projections, keys before their norm (shared QK: the one projection). Position p is in row
 *                 p mod S. LOCAL needs S >= min(position + 1, (chunks_before + 1) * C), FULL and LSH S > position
 *   rings         the last W = max(1, chunks_before*C) positions of each bucket of (example, head, round); position
 *                 number i of a bucket is in place i mod W
 *   counts        how many positions each bucket has had
 *
 * The call reads them and adds its token. When it fails, the token's row of keys and values is unspecified and all else
 * is as it was. */
typedef struct rfn_reversible_block_decode {
  uint32_t struct_size;
  int32_t layer;                   /* reports name it */
  rfn_attention_options attention; /* causal 1, dropout and padded_length 0 */
  int32_t heads;                   /* required: H */
  int32_t activation;              /* RFN_ACTIVATION_* */
  float layer_norm_epsilon;        /* required: > 0, added to variances */
  int32_t residual;                /* RFN_RESIDUAL_* */
  int32_t grid_exponent;           /* EXACT, as in rfn_reversible_block */
  int32_t reserved;
  int64_t position;                /* of the token: tokens before it */
  rfn_tensor stream1;              /* in/out F32 [B,1,E] */
  rfn_tensor stream2;              /* in/out F32 [B,1,E] */
  rfn_tensor keys;                 /* in/out F32 [B,S,H*D] */
  rfn_tensor values;               /* in/out F32 [B,S,H*D] */
  rfn_tensor rotations;            /* LSH, as in rfn_attention */
  rfn_tensor rings;                /* LSH: in/out I32 [B*H,R,buckets,W], of positions before this one */
  rfn_tensor counts;               /* LSH: in/out I32 [B*H,R,buckets], 0 .. position */
  rfn_range_report* range_report;  /* EXACT: required. Its index is that in [B,1,E] */
  rfn_block_parameters parameters; /* of both sub-layers */
} rfn_reversible_block_decode;
RFN_API rfn_status rfn_reversible_block_decode_workspace(const rfn_context* context,
                                                         const rfn_reversible_block_decode* op, int64_t* bytes);
RFN_API rfn_status rfn_reversible_block_decode_forward(rfn_stream* stream, const rfn_reversible_block_decode* op,
                                                       void* workspace, int64_t workspace_bytes);

/* Adds positions first .. first + T - 1, whose buckets a block's forward pass gave, to the rings of a cache. Zero
 * counts before the first call. */
typedef struct rfn_bucket_rings {
  uint32_t struct_size;
  int32_t reserved;
  int64_t first;      /* position of the first token */
  rfn_tensor buckets; /* I32 [B,H,R,T], 0 .. buckets - 1 */
  rfn_tensor rings;   /* in/out I32 [B*H,R,buckets,W] */
  rfn_tensor counts;  /* in/out I32 [B*H,R,buckets], 0 .. first */
} rfn_bucket_rings;
RFN_API rfn_status rfn_bucket_rings_forward(rfn_stream* stream, const rfn_bucket_rings* op);

/* ---- final norm ------------------------------------------------------------------------------ */

#define RFN_COMBINE_CONCATENATE 0 /* [stream1, stream2], width 2E (Trax language model, Hugging Face) */
#define RFN_COMBINE_MEAN 1        /* (stream1 + stream2) / 2, width E */

/* y = dropout(LayerNorm(combine(stream1, stream2))). Backward computes the statistics again. The N rows may be a
 * stretch of a longer tensor, from its row first_row on: dropout counts elements from that tensor's start, so that
 * stretches draw what one call over all rows would. */
typedef struct rfn_final_norm {
  uint32_t struct_size;
  int32_t combine; /* RFN_COMBINE_* */
  float epsilon;   /* required: > 0, added to the variance */
  float dropout;   /* 0 <= p < 1 */
  uint64_t seed;
  uint64_t step;
  int64_t first_row;       /* of the whole tensor's, that these N rows begin with */
  rfn_tensor stream1;      /* F32 [N,E] */
  rfn_tensor stream2;      /* F32 [N,E] */
  rfn_tensor weight;       /* F32 [2E] or [E] */
  rfn_tensor bias;         /* the shape of weight */
  rfn_tensor y;            /* out, forward: F32 [N,2E] or [N,E] */
  rfn_tensor grad_y;       /* backward: the shape of y */
  rfn_tensor grad_stream1; /* out, backward: F32 [N,E] */
  rfn_tensor grad_stream2; /* out, backward: F32 [N,E] */
  rfn_tensor grad_weight;  /* backward: the shape of weight, added to */
  rfn_tensor grad_bias;    /* backward: the shape of weight, added to */
} rfn_final_norm;
RFN_API rfn_status rfn_final_norm_workspace(const rfn_context* context, const rfn_final_norm* op, int32_t pass,
                                            int64_t* bytes);
RFN_API rfn_status rfn_final_norm_forward(rfn_stream* stream, const rfn_final_norm* op, void* workspace,
                                          int64_t workspace_bytes);
RFN_API rfn_status rfn_final_norm_backward(rfn_stream* stream, const rfn_final_norm* op, void* workspace,
                                           int64_t workspace_bytes);

/* ---- output head and cross entropy ----------------------------------------------------------- */

/* Output head and cross entropy in one.
 *
 *   logits_n   = weight x_n + bias
 *   target     q = (1 - smoothing) onehot(label) + smoothing / V
 *   loss_n     = -sum_v q_v log softmax(logits_n)_v
 *
 * `chunk` rows of logits exist at a time. Forward gives the statistics alone; backward gives them and, in the same
 * pass, the gradients of loss_scale * sum_n loss_n / normalizer. */
typedef struct rfn_head_loss {
  uint32_t struct_size;
  int32_t ignore_index;            /* required: rows with this label do not count */
  float label_smoothing;           /* 0 .. 1 */
  float loss_scale;                /* required: factor of the gradients */
  double normalizer;               /* 0 = rows counted by this call */
  int64_t chunk;                   /* rows at a time, 0 = automatic */
  rfn_tensor x;                    /* F32 [N,K] */
  rfn_tensor weight;               /* F32 [V,K] */
  rfn_tensor bias;                 /* F32 [V]; optional */
  rfn_tensor labels;               /* I32 [N]: ignore_index or 0 .. V-1 */
  rfn_loss_statistics* statistics; /* out */
  rfn_tensor grad_x;               /* out, backward: F32 [N,K]; may be the same memory as x */
  rfn_tensor grad_weight;          /* backward: F32 [V,K], added to */
  rfn_tensor grad_bias;            /* backward: F32 [V], added to; optional */
} rfn_head_loss;
RFN_API rfn_status rfn_head_loss_workspace(const rfn_context* context, const rfn_head_loss* op, int32_t pass,
                                           int64_t* bytes);
RFN_API rfn_status rfn_head_loss_forward(rfn_stream* stream, const rfn_head_loss* op, void* workspace,
                                         int64_t workspace_bytes);
RFN_API rfn_status rfn_head_loss_backward(rfn_stream* stream, const rfn_head_loss* op, void* workspace,
                                          int64_t workspace_bytes);

/* ---- optimizers ------------------------------------------------------------------------------ */

/* norm  = sqrt(sum of squares of all gradients), float64 sums in a fixed order
 * scale = max_norm > 0 and norm > max_norm ? max_norm / norm : 1;   0 when the norm is not finite */
typedef struct rfn_global_norm {
  uint32_t struct_size;
  float max_norm; /* 0 = no clipping */
  int64_t count;
  const rfn_tensor* gradients; /* host array of count F32 tensors */
  rfn_norm_result* result;     /* out */
} rfn_global_norm;
RFN_API rfn_status rfn_global_norm_workspace(const rfn_context* context, const rfn_global_norm* op, int64_t* bytes);
RFN_API rfn_status rfn_global_norm_forward(rfn_stream* stream, const rfn_global_norm* op, void* workspace,
                                           int64_t workspace_bytes);

/* One AdamW step of any number of parameters. `parameters` and the like are host arrays of `count` entries; entry i of
 * each belongs to parameter i, and parameters, gradients and moments of all entries are apart in memory.
 *
 *   g  = scale * gradient
 *   m  = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
 *   p -= learning_rate (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon) + weight_decay p) */
typedef struct rfn_adamw {
  uint32_t struct_size;
  float learning_rate; /* required: factor of the update */
  float beta1;         /* required: decay of the first moment */
  float beta2;         /* required: decay of the second moment */
  float epsilon;       /* required: added to the root of the second moment */
  int32_t reserved;
  int64_t step;                 /* required: 1 for the first update */
  int64_t count;                /* parameters: at least 1 */
  const rfn_tensor* parameters; /* F32, updated in place */
  const rfn_tensor* gradients;  /* the parameters' shapes */
  const rfn_tensor* moments1;   /* the parameters' shapes; zeros before the first step */
  const rfn_tensor* moments2;   /* the parameters' shapes; zeros before the first step */
  const float* weight_decays;   /* of each parameter, decoupled from the gradient; NULL: none */
  const rfn_norm_result* clip;  /* of rfn_global_norm; optional, scale 1 without */
} rfn_adamw;
RFN_API rfn_status rfn_adamw_step(rfn_stream* stream, const rfn_adamw* op);

/* One Adafactor step of any number of parameters (Shazeer and Stern 2018, without momentum); arrays as in rfn_adamw.
 * Second moments of tensors of rank >= 2 are factored over the last two axes; leading axes are merged into rows, and
 * `rows` and `columns` hold means.
 *
 *   rho    = 1 - step^-decay_exponent, the decay of second moments
 *   alpha  = learning_rate * (scale_parameter ? max(epsilon2, rms(p)) : 1)
 *   u      = g / sqrt(second moment), divided by max(1, rms(u) / clip_threshold)
 *   p     -= alpha u + learning_rate weight_decay p */
typedef struct rfn_adafactor {
  uint32_t struct_size;
  float learning_rate;     /* required: factor of the update */
  float decay_exponent;    /* required: 0.8 */
  float clip_threshold;    /* required: 1 */
  float epsilon1;          /* required: 1e-30, added to squared gradients */
  float epsilon2;          /* required: 1e-3, lower bound of the parameter's scale */
  int32_t scale_parameter; /* 1: the step is multiplied by the parameter's root mean square */
  int32_t reserved;
  int64_t step;                 /* required: 1 for the first update */
  int64_t count;                /* parameters: at least 1 */
  const rfn_tensor* parameters; /* F32, updated in place */
  const rfn_tensor* gradients;  /* the parameters' shapes */
  const rfn_tensor* rows;       /* rank >= 2: F32 [rows]; zeros before the first step; others are not read */
  const rfn_tensor* columns;    /* rank >= 2: F32 [columns]; zeros before the first step; others are not read */
  const rfn_tensor* moments2;   /* rank <= 1: the parameter's shape; zeros before the first step; others are not read */
  const float* weight_decays;   /* of each parameter, decoupled from the gradient; NULL: none */
  const rfn_norm_result* clip;  /* of rfn_global_norm; optional, scale 1 without */
} rfn_adafactor;
RFN_API rfn_status rfn_adafactor_workspace(const rfn_context* context, const rfn_adafactor* op, int64_t* bytes);
RFN_API rfn_status rfn_adafactor_step(rfn_stream* stream, const rfn_adafactor* op, void* workspace,
                                      int64_t workspace_bytes);

/* ---- sampling -------------------------------------------------------------------------------- */

/* One id per row from softmax(logits / temperature), restricted to the top_k largest logits and then to the smallest
 * set of most probable ids whose probabilities sum to at least top_p. temperature 0: the first largest logit. */
typedef struct rfn_sample {
  uint32_t struct_size;
  float temperature; /* required: 0 takes the first largest logit */
  float top_p;       /* required: 0 < p <= 1; 1 = off */
  int32_t top_k;     /* 0 = off */
  uint64_t seed;
  uint64_t step;
  rfn_tensor logits; /* F32 [N,V]; finite or -inf, and a row is not all -inf */
  rfn_tensor ids;    /* out: I32 [N] */
} rfn_sample;
RFN_API rfn_status rfn_sample_workspace(const rfn_context* context, const rfn_sample* op, int64_t* bytes);
RFN_API rfn_status rfn_sample_forward(rfn_stream* stream, const rfn_sample* op, void* workspace,
                                      int64_t workspace_bytes);

#ifdef __cplusplus
}
#endif
#endif /* REFORMER_NATIVE_H */
