/* A step of the model from the embeddings to the logits, as every thread of the team walks through it.
 *
 *     x = embedded
 *     each layer:  x += o(attend(rope(q(n)), rope(k(n)), v(n))), n = norm(x);  x += down(silu(gate(n)) up(n)), n = norm(x)
 *     logits = head(norm(x))
 *
 * Threads meet where one needs what another made. Rows of a matrix are dealt out: three quarters of them beforehand, the
 * rest to whoever is free, so that a thread that lost its core for a while does not keep the others waiting. Every
 * number is computed by one thread, in an order that does not depend on how many there are. */
#ifndef LAMOID_FORWARD_H
#define LAMOID_FORWARD_H

#include "attention.h"
#include "scratch.h"

/* ---- Dealing out work. ---- */

typedef struct {
    atomic_int *counter;
    int own, own_end, shared, n, size;
} Deal;

static Deal deal(Engine *engine, atomic_int *counter, int n, int thread) {
    int n_threads = team_size(engine->team), share = n_threads == 1 ? n : n * 3 / 4 / n_threads;
    int size = n / (16 * n_threads);
    return (Deal){counter, share * thread, share * (thread + 1), share * n_threads, n, size > 1 ? size : 1};
}

/* The next run of items, from *begin to before *end; 0 when there are no more. */
static int next(Deal *d, int *begin, int *end) {
    if (d->own < d->own_end) {
        *begin = d->own, *end = d->own = d->own_end;
        return 1;
    }
    *begin = d->shared + atomic_fetch_add_explicit(d->counter, d->size, memory_order_relaxed);
    *end = *begin + d->size < d->n ? *begin + d->size : d->n;
    return *begin < d->n;
}

/* ---- Inputs of products. ---- */

static int needs_quantized(const Matrix *const matrices[], int n) {
    for (int i = 0; i < n; i++)
        if (is_quantized(matrices[i]->format)) return 1;
    return 0;
}

/* Rows for n_tokens tokens of n_cols floats in x. One token is quantized by each thread for itself, since that takes less
 * time than to meet; several are shared out, and then the threads meet. With a gain, x is normed on its way. */
static Rows make_rows(Engine *engine, int thread, float *x, int n_tokens, int n_cols, int is_wanted, const float *gain, float epsilon, const float *from, int from_stride, const int32_t *picks) {
    int n_threads = team_size(engine->team), stride = round_up(n_cols, GROUP), is_alone = n_tokens == 1;
    int64_t skip = is_alone ? thread : 0, groups = stride / GROUP;
    Rows rows = {n_cols, stride, x, engine->quantized + skip * stride, engine->scales + skip * 2 * groups, NULL, engine->sums + skip * 3 * groups, NULL};
    rows.d_sum = rows.d + groups * n_tokens;
    rows.halves = rows.sum + groups * n_tokens;
    if (gain != NULL && is_alone) rows.x = x + (int64_t)thread * stride;
    int begin = is_alone ? 0 : (int)((int64_t)n_tokens * thread / n_threads);
    int end = is_alone ? 1 : (int)((int64_t)n_tokens * (thread + 1) / n_threads);
    for (int t = begin; t < end; t++) {
        int64_t source = picks == NULL ? t : picks[t];
        if (gain != NULL) rms_norm(from + source * from_stride, gain, n_cols, epsilon, rows.x + (int64_t)t * stride);
        if (is_wanted) quantize_row(&rows, t);
    }
    if (!is_alone) team_wait(engine->team);
    return rows;
}

/* ---- Products. ---- */

/* outs[i] = matrices[i] · rows; if there is a sum, it is what the first is added to. */
static void multiply(Engine *engine, int thread, atomic_int *counter, const Matrix *const matrices[], float *const outs[], const int strides[], int n, const Rows *rows, int n_tokens, float *sum) {
    int n_panels[3] = {0}, total = 0, begin, end;
    for (int i = 0; i < n; i++) total += n_panels[i] = (matrices[i]->n_rows + PANEL - 1) / PANEL;
    for (Deal d = deal(engine, counter, total, thread); next(&d, &begin, &end);)
        for (int item = begin; item < end; item++) {
            int i = 0, p = item;
            while (p >= n_panels[i]) p -= n_panels[i++];
            multiply_panel(matrices[i], p, rows, n_tokens, outs[i], strides[i]);
            if (sum == NULL) continue;
            for (int t = 0; t < n_tokens; t++) {
                float *to = sum + (int64_t)t * strides[0] + 8 * p;
                store8(to, load8(to) + load8(outs[0] + (int64_t)t * strides[0] + 8 * p));
            }
        }
}

/* gate = silu(gate · rows) (up · rows),  silu(a) = a / (1 + e^-a) */
static void multiply_gated(Engine *engine, int thread, atomic_int *counter, const Layer *layer, const Rows *rows, int n_tokens, int stride) {
    int begin, end, n_panels = (layer->gate.n_rows + PANEL - 1) / PANEL;
    for (Deal d = deal(engine, counter, n_panels, thread); next(&d, &begin, &end);)
        for (int p = begin; p < end; p++) {
            multiply_panel(&layer->gate, p, rows, n_tokens, engine->gate, stride);
            multiply_panel(&layer->up, p, rows, n_tokens, engine->up, stride);
            for (int t = 0; t < n_tokens; t++) {
                float *to = engine->gate + (int64_t)t * stride + 8 * p;
                f8 g = load8(to), u = load8(engine->up + (int64_t)t * stride + 8 * p);
                store8(to, g / (all8(1.0f) + exp8(zero8() - g)) * u);
            }
        }
}

/* ---- RoPE and the cache. ---- */

/* y = x turned by the angles of its position, times a factor; pairs are neighbours or half a head apart. */
static void turn(const float *x, const float *cosines, const float *sines, int n, int is_interleaved, float factor, float *y) {
    int half = n / 2, step = is_interleaved ? 2 : 1, apart = is_interleaved ? 1 : half;
    for (int i = 0; i < half; i++) {
        float a = x[i * step] * factor, b = x[i * step + apart] * factor, c = cosines[i], s = sines[i];
        y[i * step] = a * c - b * s;
        y[i * step + apart] = b * c + a * s;
    }
}

static int64_t half_page_bytes(const Model *m) { /* keys or values of one layer and kv-head */
    return (int64_t)round_up(m->head_dim, 8) * PAGE_KEYS * (m->is_half_cache ? 2 : 4);
}

/* Numbers into a page, `step` apart. float16 stops at its largest: an infinity would also spoil what may not see it. */
static void put(uint8_t *page, int at, int step, const float *numbers, int n, int is_half) {
    for (int i = 0; i < n; i += 8) {
        int some = n - i < 8 ? n - i : 8;
        f8 eight = some == 8 ? load8(numbers + i) : load_some8(numbers + i, some);
        if (is_half) {
            uint16_t halves[8];
            store_half8(halves, min8(max8(eight, all8(-65504.0f)), all8(65504.0f)));
            for (int j = 0; j < some; j++) memcpy(page + 2 * (int64_t)(at + (i + j) * step), halves + j, 2);
        } else {
            for (int j = 0; j < some; j++) memcpy(page + 4 * (int64_t)(at + (i + j) * step), numbers + i + j, 4);
        }
    }
}

/* Turn a token's queries where they lie, and put its turned keys and its values of one kv-head into the cache. */
static void cache_token(const Step *step, int layer, int token, int kv_head) {
    const Model *m = step->model;
    const Batch *b = step->batch;
    Engine *engine = step->engine;
    int E = m->head_dim, group = m->n_heads / m->n_kv_heads, position = b->positions[token], half = E / 2;
    const float *cosines = b->cosines + (int64_t)position * half, *sines = b->sines + (int64_t)position * half;
    float *q = engine->q + (int64_t)token * round_up(m->n_heads * E, GROUP) + (int64_t)kv_head * group * E;
    float factor = 1.0f / sqrtf((float)E);
    for (int h = 0; h < group; h++) turn(q + h * E, cosines, sines, E, m->is_interleaved, factor, q + h * E);
    int64_t kv_at = (int64_t)token * round_up(m->n_kv_heads * E, GROUP) + (int64_t)kv_head * E, bytes = half_page_bytes(m);
    turn(engine->k + kv_at, cosines, sines, E, m->is_interleaved, 1.0f, engine->k + kv_at);
    uint8_t *page = (uint8_t *)b->pages[token][position / PAGE_KEYS] + 2 * bytes * ((int64_t)layer * m->n_kv_heads + kv_head);
    int slot = position % PAGE_KEYS;
    put(page, slot, PAGE_KEYS, engine->k + kv_at, E, m->is_half_cache);
    put(page + bytes, slot * round_up(E, 8), 1, engine->v + kv_at, E, m->is_half_cache);
}

/* ---- Attention. ---- */

/* One tile's queries of one kv-head in a range: side by side in `q`, with the number of keys that each sees. */
static int gather(const Step *step, Tile tile, int kv_head, int range, float *q, int *limits) {
    const Model *m = step->model;
    int E = m->head_dim, width = round_up(E, 8), group = m->n_heads / m->n_kv_heads, n = 0;
    for (int t = tile.first; t < tile.first + tile.n; t++) {
        const float *from = step->engine->q + (int64_t)t * round_up(m->n_heads * E, GROUP) + (int64_t)kv_head * group * E;
        int limit = step->batch->positions[t] + 1 - range * RANGE;
        for (int h = 0; h < group; h++, n++) {
            memcpy(q + (int64_t)n * width, from + h * E, 4 * (size_t)E);
            limits[n] = limit < 0 ? 0 : limit < RANGE ? limit : RANGE;
        }
    }
    return n;
}

static int n_ranges(const Batch *b, Tile tile) { return b->positions[tile.first + tile.n - 1] / RANGE + 1; }

static void attend_once(const Step *step, int layer, Tile tile, int kv_head, int range, const float *q, const int *limits, int n, Partial *out) {
    const Model *m = step->model;
    int E = m->head_dim;
    int64_t bytes = half_page_bytes(m), keys_at = 2 * bytes * ((int64_t)layer * m->n_kv_heads + kv_head);
    const uint8_t *const *pages = (const uint8_t *const *)step->batch->pages[tile.first] + 2 * range;
    if (m->is_half_cache)
        attend_range(1, pages, keys_at, keys_at + bytes, E, round_up(E, 8), q, limits, n, out);
    else
        attend_range(0, pages, keys_at, keys_at + bytes, E, round_up(E, 8), q, limits, n, out);
}

/* Where a result lies: a largest score, a sum, and the values. */
static Partial partial_at(float *numbers, int64_t i, int width) {
    float *at = numbers + i * (width + 8);
    return (Partial){at[0], at[1], at + 8};
}

static void keep_partials(const Partial *partials, int n) {
    for (int i = 0; i < n; i++) {
        partials[i].values[-8] = partials[i].largest;
        partials[i].values[-7] = partials[i].sum;
    }
}

/* The attention's result of a tile's queries into the rows that the output matrix reads. */
static void finish(const Step *step, Tile tile, int kv_head, const Partial *partials) {
    const Model *m = step->model;
    int E = m->head_dim, group = m->n_heads / m->n_kv_heads, stride = round_up(m->n_heads * E, GROUP);
    for (int i = 0; i < tile.n * group; i++) {
        float *to = step->engine->mixed + (int64_t)(tile.first + i / group) * stride + (kv_head * group + i % group) * E;
        float factor = 1.0f / partials[i].sum;
        for (int e = 0; e < E; e++) to[e] = partials[i].values[e] * factor;
    }
}

typedef struct {
    float *q;
    int *limits;
    Partial *left, *right;
} Desk; /* a thread's own place for the queries of a tile */

static Desk desk_of(Engine *engine, const Model *m, int thread) {
    int64_t width = round_up(m->head_dim, 8), n = most_queries(m);
    float *at = engine->queries + thread * round_up((int)desk_floats(m), 16);
    Desk desk;
    desk.left = (Partial *)at;
    desk.right = desk.left + n;
    desk.q = (float *)(desk.right + n);
    float *values = desk.q + n * width;
    desk.limits = (int *)(values + 2 * n * (width + 8));
    for (int64_t i = 0; i < 2 * n; i++) desk.left[i] = (Partial){0.0f, 0.0f, values + i * (width + 8) + 8};
    return desk;
}

/* A tile and a kv-head from the first range to the last. */
static void attend_whole(const Step *step, int layer, Tile tile, int kv_head, Desk *desk) {
    int width = round_up(step->model->head_dim, 8), last = n_ranges(step->batch, tile);
    for (int range = 0; range < last; range++) {
        int n = gather(step, tile, kv_head, range, desk->q, desk->limits);
        attend_once(step, layer, tile, kv_head, range, desk->q, desk->limits, n, range ? desk->right : desk->left);
        for (int i = 0; range && i < n; i++) join(desk->left + i, desk->right + i, width);
    }
    finish(step, tile, kv_head, desk->left);
}

/* Where there are too few tiles for the threads, ranges are work of their own, and are joined when all are done. */
static void attend_split(const Step *step, int layer, int item, int range, Desk *desk) {
    const Model *m = step->model;
    Engine *engine = step->engine;
    int width = round_up(m->head_dim, 8);
    Tile tile = engine->tiles[item / m->n_kv_heads];
    if (range >= n_ranges(step->batch, tile)) return;
    int n = gather(step, tile, item % m->n_kv_heads, range, desk->q, desk->limits);
    for (int i = 0; i < n; i++)
        desk->right[i] = partial_at(engine->partial_numbers, ((int64_t)item * engine->most_ranges + range) * most_queries(m) + i, width);
    attend_once(step, layer, tile, item % m->n_kv_heads, range, desk->q, desk->limits, n, desk->right);
    keep_partials(desk->right, n);
}

static void join_split(const Step *step, int item, Desk *desk) {
    const Model *m = step->model;
    Engine *engine = step->engine;
    int width = round_up(m->head_dim, 8), group = m->n_heads / m->n_kv_heads;
    Tile tile = engine->tiles[item / m->n_kv_heads];
    for (int i = 0; i < tile.n * group; i++)
        for (int range = 0; range < n_ranges(step->batch, tile); range++) {
            Partial p = partial_at(engine->partial_numbers, ((int64_t)item * engine->most_ranges + range) * most_queries(m) + i, width);
            if (range == 0)
                desk->right[i] = p;
            else
                join(desk->right + i, &p, width);
        }
    finish(step, tile, item % m->n_kv_heads, desk->right);
}

static void attend(const Step *step, int layer, int thread, atomic_int *counters) {
    const Model *m = step->model;
    Engine *engine = step->engine;
    Desk desk = desk_of(engine, m, thread);
    int n_items = engine->n_tiles * m->n_kv_heads, item;
    if (!engine->is_split) {
        while ((item = atomic_fetch_add_explicit(&counters[0], 1, memory_order_relaxed)) < n_items)
            attend_whole(step, layer, engine->tiles[item / m->n_kv_heads], item % m->n_kv_heads, &desk);
        return;
    }
    while ((item = atomic_fetch_add_explicit(&counters[0], 1, memory_order_relaxed)) < n_items * engine->most_ranges)
        attend_split(step, layer, item / engine->most_ranges, item % engine->most_ranges, &desk);
    team_wait(engine->team);
    while ((item = atomic_fetch_add_explicit(&counters[1], 1, memory_order_relaxed)) < n_items) join_split(step, item, &desk);
}

/* ---- The step. ---- */

static void run_layer(const Step *step, int number, int thread) {
    const Model *m = step->model;
    const Layer *layer = &m->layers[number];
    Engine *e = step->engine;
    int T = step->batch->n_tokens, D = m->d_model, n_threads = team_size(e->team);
    int d_stride = round_up(D, GROUP), q_stride = round_up(m->n_heads * m->head_dim, GROUP);
    int kv_stride = round_up(m->n_kv_heads * m->head_dim, GROUP), f_stride = round_up(m->d_ff, GROUP);
    atomic_int *counters = e->counters + number * COUNTERS;

    const Matrix *qkv[] = {&layer->q, &layer->k, &layer->v};
    Rows rows = make_rows(e, thread, e->normed, T, D, needs_quantized(qkv, 3), layer->attention_norm, m->norm_eps, e->x, d_stride, NULL);
    multiply(e, thread, counters, qkv, (float *const[]){e->q, e->k, e->v}, (const int[]){q_stride, kv_stride, kv_stride}, 3, &rows, T, NULL);
    team_wait(e->team);

    int n_items = T * m->n_kv_heads;
    for (int i = (int)((int64_t)n_items * thread / n_threads); i < (int)((int64_t)n_items * (thread + 1) / n_threads); i++)
        cache_token(step, number, i / m->n_kv_heads, i % m->n_kv_heads);
    team_wait(e->team);
    attend(step, number, thread, counters + 1);
    team_wait(e->team);

    const Matrix *o[] = {&layer->o}, *gate_up[] = {&layer->gate, &layer->up}, *down[] = {&layer->down};
    rows = make_rows(e, thread, e->mixed, T, m->n_heads * m->head_dim, needs_quantized(o, 1), NULL, 0.0f, NULL, 0, NULL);
    multiply(e, thread, counters + 3, o, &e->projected, &d_stride, 1, &rows, T, e->x);
    team_wait(e->team);

    rows = make_rows(e, thread, e->normed, T, D, needs_quantized(gate_up, 2), layer->feed_forward_norm, m->norm_eps, e->x, d_stride, NULL);
    multiply_gated(e, thread, counters + 4, layer, &rows, T, f_stride);
    team_wait(e->team);
    rows = make_rows(e, thread, e->gate, T, m->d_ff, needs_quantized(down, 1), NULL, 0.0f, NULL, 0, NULL);
    multiply(e, thread, counters + 5, down, &e->projected, &d_stride, 1, &rows, T, e->x);
    team_wait(e->team);
}

static void run_step(void *argument, int thread) {
    const Step *step = argument;
    const Model *m = step->model;
    const Batch *b = step->batch;
    Engine *e = step->engine;
    for (int layer = 0; layer < m->n_layers; layer++) run_layer(step, layer, thread);
    if (b->n_outputs == 0) return;
    const Matrix *head[] = {&m->head};
    const int stride = round_up(m->vocab_size, PANEL);
    Rows rows = make_rows(e, thread, e->normed, b->n_outputs, m->d_model, needs_quantized(head, 1), m->norm, m->norm_eps, e->x, round_up(m->d_model, GROUP), b->outputs);
    multiply(e, thread, e->counters + m->n_layers * COUNTERS, head, &b->logits, &stride, 1, &rows, b->n_outputs, NULL);
}

/* ---- One product alone, for tests. ---- */

static void run_product(void *argument, int thread) {
    const Product *p = argument;
    const Matrix *matrices[] = {p->matrix};
    const int stride = round_up(p->matrix->n_rows, PANEL);
    Rows rows = make_rows(p->engine, thread, p->engine->x, p->n_tokens, p->matrix->n_cols, needs_quantized(matrices, 1), NULL, 0.0f, NULL, 0, NULL);
    multiply(p->engine, thread, p->engine->counters, matrices, &p->y, &stride, 1, &rows, p->n_tokens, NULL);
}

#endif
