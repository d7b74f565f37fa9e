/* The functions that Python calls: memory for a step, the choice of the processor's path, and packing. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#include "paths.h"
#include "scratch.h"

#if defined(KNOWS_AVX2)
#include <cpuid.h>
#endif

typedef struct {
    const char *name;
    int (*is_supported)(void);
    Work step, product;
} Path;

static int always(void) { return 1; }

#if defined(KNOWS_AVX2)
static int has_avx2(void) { /* not every compiler that knows the instructions of F16C can ask for them by name */
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
static int has_avx512vnni(void) { return has_avx2() && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"); }
#endif
#if defined(KNOWS_AVXVNNI)
static int has_avxvnni(void) { /* nor for AVX-VNNI */
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

static const Path PATHS[] = {
#if defined(KNOWS_AVX2)
    {"AVX512-VNNI", has_avx512vnni, run_step_avx512vnni, run_product_avx512vnni},
#if defined(KNOWS_AVXVNNI)
    {"AVX-VNNI", has_avxvnni, run_step_avxvnni, run_product_avxvnni},
#endif
    {"AVX2", has_avx2, run_step_avx2, run_product_avx2},
#endif
    {"C", always, run_step_portable, run_product_portable},
};
enum { N_PATHS = sizeof(PATHS) / sizeof(PATHS[0]) };

const char *lamoid_path(int path) { return path < N_PATHS ? PATHS[path].name : NULL; }
int lamoid_supports(int path) { return path < N_PATHS && PATHS[path].is_supported(); }

Engine *lamoid_open(int n_threads, int path) {
    Engine *engine = calloc(1, sizeof(Engine));
    if (engine == NULL) return NULL;
    engine->path = path;
    engine->team = team_open(n_threads);
    if (engine->team == NULL) {
        free(engine);
        return NULL;
    }
    return engine;
}

void lamoid_close(Engine *engine) {
    team_close(engine->team);
    for (int i = 0; i < N_BUFFERS; i++) free(engine->buffers[i].data);
    free(engine);
}

/* Buffer i with room for n items, zeros where it is new; NULL where memory is missing. */
static void *room(Engine *engine, int i, int64_t n, size_t item) {
    Buffer *buffer = &engine->buffers[i];
    size_t size = ((size_t)n * item + 64) / 64 * 64;
    if (size <= buffer->size) return buffer->data;
    free(buffer->data);
    *buffer = (Buffer){aligned_alloc(64, size), size};
    if (buffer->data == NULL) buffer->size = 0;
    else memset(buffer->data, 0, size);
    return buffer->data;
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Room for the int8 rows of n_tokens tokens, or of one token for each thread. */
static int make_room_for_rows(Engine *engine, int64_t n_tokens, int64_t widest) {
    int64_t n = most(n_tokens, team_size(engine->team)), groups = widest / GROUP;
    engine->quantized = room(engine, 0, n * widest, 1);
    engine->scales = room(engine, 1, n * groups * 2, 4);
    engine->sums = room(engine, 2, n * groups * 3, 4);
    return engine->quantized && engine->scales && engine->sums;
}

static int make_counters(Engine *engine, int n) {
    engine->counters = room(engine, 3, n, sizeof(atomic_int));
    for (int i = 0; engine->counters && i < n; i++) atomic_init(&engine->counters[i], 0);
    return engine->counters != NULL;
}

/* Cut the batch into tiles: tokens of one sequence in a row, as many as MOST_QUERIES allow. */
static int make_tiles(Engine *engine, const Model *m, const Batch *b) {
    int group = m->n_heads / m->n_kv_heads, tallest = MOST_QUERIES / group > 1 ? MOST_QUERIES / group : 1, n = 0;
    Tile *tiles = engine->tiles = room(engine, 4, b->n_tokens, sizeof(Tile));
    if (tiles == NULL) return 0;
    engine->most_ranges = 1;
    for (int t = 0; t < b->n_tokens; t++) {
        int goes_on = n && tiles[n - 1].n < tallest && b->pages[t] == b->pages[t - 1] && b->positions[t] == b->positions[t - 1] + 1;
        if (goes_on) tiles[n - 1].n++;
        else tiles[n++] = (Tile){t, 1};
        engine->most_ranges = (int)most(engine->most_ranges, b->positions[t] / RANGE + 1);
    }
    engine->n_tiles = n;
    int n_items = n * m->n_kv_heads;
    engine->is_split = engine->most_ranges > 1 && n_items < 4 * team_size(engine->team);
    int64_t n_partials = engine->is_split ? (int64_t)n_items * engine->most_ranges * most_queries(m) : 0;
    engine->partial_numbers = room(engine, 5, n_partials * (round_up(m->head_dim, 8) + 8), 4);
    return engine->partial_numbers != NULL;
}

static int make_room(Engine *engine, const Model *m, const Batch *b) {
    int64_t n_threads = team_size(engine->team), T = most(b->n_tokens, n_threads);
    int64_t D = round_up(m->d_model, GROUP), Q = round_up(m->n_heads * m->head_dim, GROUP);
    int64_t KV = round_up(m->n_kv_heads * m->head_dim, GROUP), F = round_up(m->d_ff, GROUP);
    struct { float **place; int64_t width; } floats[] = {
        {&engine->x, D}, {&engine->normed, D}, {&engine->projected, D}, {&engine->q, Q}, {&engine->mixed, Q},
        {&engine->k, KV}, {&engine->v, KV}, {&engine->gate, F}, {&engine->up, F},
    };
    for (int i = 0; i < 9; i++)
        if ((*floats[i].place = room(engine, 6 + i, T * floats[i].width, 4)) == NULL) return 0;
    engine->queries = room(engine, 15, n_threads * round_up((int)desk_floats(m), 16), 4);
    return engine->queries && make_room_for_rows(engine, b->n_tokens, most(D, most(Q, F))) &&
           make_counters(engine, m->n_layers * COUNTERS + 1) && make_tiles(engine, m, b);
}

int lamoid_forward(Engine *engine, const Model *model, const Batch *batch) {
    if (!make_room(engine, model, batch)) return -1;
    int64_t stride = round_up(model->d_model, GROUP);
    for (int t = 0; t < batch->n_tokens; t++)
        memcpy(engine->x + t * stride, batch->embedded + (int64_t)t * model->d_model, 4 * (size_t)model->d_model);
    Step step = {engine, model, batch};
    team_run(engine->team, PATHS[engine->path].step, &step);
    return 0;
}

int lamoid_matmul(Engine *engine, const Matrix *matrix, const float *x, int n_tokens, float *y) {
    int64_t stride = round_up(matrix->n_cols, GROUP);
    engine->x = room(engine, 6, n_tokens * stride, 4);
    if (engine->x == NULL || !make_room_for_rows(engine, n_tokens, stride) || !make_counters(engine, 1)) return -1;
    for (int t = 0; t < n_tokens; t++)
        memcpy(engine->x + t * stride, x + (int64_t)t * matrix->n_cols, 4 * (size_t)matrix->n_cols);
    Product product = {engine, matrix, n_tokens, y};
    team_run(engine->team, PATHS[engine->path].product, &product);
    return 0;
}

typedef struct {
    Engine *engine;
    int format, n_rows, n_cols;
    const uint8_t *rows;
    uint8_t *panels;
} Packing;

static void run_packing(void *argument, int thread) {
    const Packing *p = argument;
    int n_threads = team_size(p->engine->team), n_panels = (p->n_rows + PANEL - 1) / PANEL;
    int64_t from = row_bytes(p->format, p->n_cols) * PANEL, to = panel_bytes(p->format, p->n_cols);
    for (int i = (int)((int64_t)n_panels * thread / n_threads); i < (int)((int64_t)n_panels * (thread + 1) / n_threads); i++) {
        int n = p->n_rows - i * PANEL < PANEL ? p->n_rows - i * PANEL : PANEL;
        pack_panel(p->format, p->rows + i * from, n, p->n_cols, p->panels + i * to);
    }
}

void lamoid_pack(Engine *engine, int format, const void *rows, int n_rows, int n_cols, void *panels) {
    Packing packing = {engine, format, n_rows, n_cols, rows, panels};
    team_run(engine->team, run_packing, &packing);
}

int64_t lamoid_packed_bytes(int format, int n_rows, int n_cols) {
    return (int64_t)((n_rows + PANEL - 1) / PANEL) * panel_bytes(format, n_cols);
}

typedef struct {
    Engine *engine;
    const uint64_t *data;
    int64_t n;
    atomic_ullong sum;
} Reading;

static void run_reading(void *argument, int thread) {
    Reading *r = argument;
    int64_t n_threads = team_size(r->engine->team), i = r->n * thread / n_threads, end = r->n * (thread + 1) / n_threads;
    uint64_t sums[8] = {0};
    for (; i + 8 <= end; i += 8) {
        __builtin_prefetch(r->data + i + 256);
        for (int j = 0; j < 8; j++) sums[j] += r->data[i + j];
    }
    for (int j = 0; j < 8; j++) atomic_fetch_add(&r->sum, sums[j]);
}

uint64_t lamoid_read(Engine *engine, const void *data, int64_t n_bytes) {
    Reading reading = {engine, data, n_bytes / 8, 0};
    team_run(engine->team, run_reading, &reading);
    return atomic_load(&reading.sum);
}
