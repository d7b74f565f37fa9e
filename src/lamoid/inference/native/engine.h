/* What Python sees of the engine: plain structs (mirrored in library.py) and a few functions.
 *
 * Alphabet as everywhere in Lamoid: D model, H heads, K kv-heads, E head size, F feed-forward, V vocabulary.
 * Nothing here checks its arguments: Python has compared every shape, format and position before it calls. */
#ifndef LAMOID_ENGINE_H
#define LAMOID_ENGINE_H

#include <stdint.h>

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT
#endif

enum { PAGE_KEYS = 64 }; /* positions in a page of the KV cache */

/* A weight matrix W (n_rows x n_cols), y = W x + bias. `format` is GGUF's number of its type (see panels.h); the
 * weights lie in panels of 8 rows. */
typedef struct {
    int32_t format, n_rows, n_cols;
    const void *data;
    const float *bias; /* n_rows numbers, or NULL */
} Matrix;

typedef struct {
    const float *attention_norm, *feed_forward_norm;
    Matrix q, k, v, o, gate, up, down;
} Layer;

typedef struct {
    int32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
    int32_t is_interleaved; /* RoPE turns neighbours (GGUF, Meta) instead of halves (Hugging Face) */
    int32_t is_half_cache;  /* keys and values are float16 instead of float32 */
    float norm_eps;
    const float *norm;
    Matrix head;
    const Layer *layers;
} Model;

/* Tokens of any number of sequences that take one step together. Neighbours that share `pages` and have consecutive
 * positions are read as one run. A page holds, for each layer and kv-head, the keys as (E, PAGE_KEYS) and then the
 * values as (PAGE_KEYS, E), E rounded up to a multiple of 8; position p of a sequence is slot p % PAGE_KEYS of its
 * page p / PAGE_KEYS. */
typedef struct {
    int32_t n_tokens, n_outputs;
    const float *embedded;     /* (n_tokens, D): the embeddings of the tokens */
    const int32_t *positions;  /* (n_tokens) */
    void *const *const *pages; /* (n_tokens): the list of pages of each token's sequence */
    const float *cosines;      /* (positions, E / 2) */
    const float *sines;
    const int32_t *outputs; /* (n_outputs): ascending numbers of the tokens after which logits are wanted */
    float *logits;          /* (n_outputs, V rounded up to a multiple of 8) */
} Batch;

typedef struct Engine Engine;

/* The ways to compute, the fastest first: the same source compiled for one kind of processor or another. The name of
 * number 0, 1, …, NULL behind the last; and whether this processor has it. All give the same bits but the last ("C"). */
EXPORT const char *lamoid_path(int path);
EXPORT int lamoid_supports(int path);

/* NULL where memory or threads are missing. */
EXPORT Engine *lamoid_open(int n_threads, int path);
EXPORT void lamoid_close(Engine *engine);

/* One step of the model for all tokens of a batch; extends the cache in place. 0, or -1 where memory is missing. */
EXPORT int lamoid_forward(Engine *engine, const Model *model, const Batch *batch);

/* Rows as they lie in a file into panels of 8 rows; the last panel is filled up with zeros. */
EXPORT void lamoid_pack(Engine *engine, int format, const void *rows, int n_rows, int n_cols, void *panels);
EXPORT int64_t lamoid_packed_bytes(int format, int n_rows, int n_cols);

/* y (n_tokens, n_rows rounded up to a multiple of 8) = x Wᵀ + bias, for tests. 0, or -1 where memory is missing. */
EXPORT int lamoid_matmul(Engine *engine, const Matrix *matrix, const float *x, int n_tokens, float *y);

/* Read this many bytes with all threads, as a decoding step does; returns a checksum. The machine's limit. */
EXPORT uint64_t lamoid_read(Engine *engine, const void *data, int64_t n_bytes);

#endif
