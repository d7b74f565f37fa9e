/* The engine's own memory: what a step of so many tokens of a model needs between its phases. It only grows. */
#ifndef LAMOID_SCRATCH_H
#define LAMOID_SCRATCH_H

#include <stdatomic.h>
#include <stddef.h>

#include "engine.h"
#include "panels.h"
#include "team.h"

typedef struct {
    void *data;
    size_t size;
} Buffer;

/* Consecutive tokens of one sequence whose queries are taken together: tokens first … first + n - 1. */
typedef struct {
    int first, n;
} Tile;

enum { RANGE = 2 * PAGE_KEYS, MOST_QUERIES = 64 };

/* What attention to one range gives for one query: `values` are E numbers, E rounded up to 8. */
typedef struct {
    float largest, sum;
    float *values;
} Partial;

enum { N_BUFFERS = 16 };

struct Engine {
    Team *team;
    int path; /* its number in engine.c */
    Buffer buffers[N_BUFFERS];
    /* Floats, a row for each token; the strides are rounded up to 32. */
    float *x, *normed, *q, *k, *v, *mixed, *gate, *up, *projected;
    int8_t *quantized; /* the parts of Rows, for all tokens or, if there is one token, for each thread */
    float *scales;
    int32_t *sums;
    Tile *tiles;
    float *queries;         /* for each thread: MOST_QUERIES or the queries of a kv-head, E numbers each, three times */
    float *partial_numbers; /* where tiles are split into ranges */
    atomic_int *counters;
    int n_tiles, n_counters, most_ranges, is_split;
};

/* What the threads are called with: a step of the model, or (for tests) one product. */
typedef struct {
    Engine *engine;
    const Model *model;
    const Batch *batch;
} Step;

typedef struct {
    Engine *engine;
    const Matrix *matrix;
    int n_tokens;
    float *y;
} Product;

enum { COUNTERS = 6 }; /* of each layer: one for each piece of work that is dealt out */

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

static inline int most_queries(const Model *m) {
    int group = m->n_heads / m->n_kv_heads;
    return group > MOST_QUERIES ? group : MOST_QUERIES;
}

/* Of one thread (see Desk in forward.h): queries, two results of each, their limits. */
static inline int64_t desk_floats(const Model *m) {
    int64_t width = round_up(m->head_dim, 8), n = most_queries(m);
    return n * (3 * width + 16 + 1) + n * 2 * (int64_t)(sizeof(Partial) / 4);
}

#endif
