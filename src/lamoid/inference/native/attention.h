/* Attention of a tile of queries over the cache, in ranges of RANGE keys.
 *
 *     s = q · k / sqrt(E),  o = Σ exp(s - m) v / Σ exp(s - m)
 *
 * A range gives each query its largest score m, its sum and its weighted values; ranges are joined from left to right
 * (Milakov & Gimelshein 2018; Dao et al. 2022). Ranges begin at multiples of RANGE, and each score and each value is
 * summed in one order, so a query gets the same bits whoever shares its tile and whichever threads take its ranges. */
#ifndef LAMOID_ATTENTION_H
#define LAMOID_ATTENTION_H

#include "dot.h"
#include "scratch.h"

INLINE f8 load_cached(const int is_half, const uint8_t *p, int i) {
    return is_half ? load_half8((const uint16_t *)p + i) : load8((const float *)p + i);
}

enum { MOST_T = 6 }; /* queries that share one look at keys and values */

/* Scores of T queries (E apart in q) with 8 W keys, which stand side by side for each feature. */
INLINE void score_keys(const int is_half, const int T, const int W, const uint8_t *keys, int first, const float *q, int q_stride, int n_features, float *scores, int stride) {
    f8 total[MOST_T][8];
    TOKENS for (int w = 0; w < W; w++) total[t][w] = zero8();
    for (int e = 0; e < n_features; e++) {
        if (T <= 3) { /* few queries, many keys: keep the queries' numbers, else the keys' */
            f8 feature[MOST_T];
            TOKENS feature[t] = all8(q[t * q_stride + e]);
            for (int w = 0; w < W; w++) {
                f8 k = load_cached(is_half, keys, e * PAGE_KEYS + first + 8 * w);
                TOKENS total[t][w] = fma8(feature[t], k, total[t][w]);
            }
        } else {
            f8 k[8];
            for (int w = 0; w < W; w++) k[w] = load_cached(is_half, keys, e * PAGE_KEYS + first + 8 * w);
            TOKENS {
                f8 feature = all8(q[t * q_stride + e]);
                for (int w = 0; w < W; w++) total[t][w] = fma8(feature, k[w], total[t][w]);
            }
        }
    }
    TOKENS for (int w = 0; w < W; w++) store8(scores + t * stride + first + 8 * w, total[t][w]);
}

/* Σ weight · value of T queries over n keys of the pages, for 8 W features. */
INLINE void mix_values(const int is_half, const int T, const int W, const uint8_t *const pages[], int64_t values_at, int width, int feature, const float *weights, int stride, int n_keys, float *const out[]) {
    f8 total[MOST_T][8];
    TOKENS for (int w = 0; w < W; w++) total[t][w] = zero8();
    const uint8_t *values = NULL;
    for (int key = 0, at = 0; key < n_keys; key++, at += width) {
        if (key % PAGE_KEYS == 0) values = pages[key / PAGE_KEYS] + values_at, at = feature;
        if (T <= 3) {
            f8 weight[MOST_T];
            TOKENS weight[t] = all8(weights[t * stride + key]);
            for (int w = 0; w < W; w++) {
                f8 v = load_cached(is_half, values, at + 8 * w);
                TOKENS total[t][w] = fma8(weight[t], v, total[t][w]);
            }
        } else {
            f8 v[8];
            for (int w = 0; w < W; w++) v[w] = load_cached(is_half, values, at + 8 * w);
            TOKENS {
                f8 weight = all8(weights[t * stride + key]);
                for (int w = 0; w < W; w++) total[t][w] = fma8(weight, v[w], total[t][w]);
            }
        }
    }
    TOKENS for (int w = 0; w < W; w++) store8(out[t] + feature + 8 * w, total[t][w]);
}

/* Scores -> exp(s - m), in place, with zeros behind the first n of `padded` (a multiple of 8). */
INLINE void soften(float *scores, int n, int padded, Partial *out) {
    f8 most = all8(-INFINITY), sum = zero8();
    for (int i = n; i < padded; i++) scores[i] = -INFINITY;
    for (int i = 0; i < padded; i += 8) most = max8(most, load8(scores + i));
    out->largest = largest8(most);
    f8 shift = all8(n > 0 ? out->largest : 0.0f);
    for (int i = 0; i < padded; i += 8) {
        f8 weight = exp8(load8(scores + i) - shift);
        store8(scores + i, weight);
        sum = sum + weight;
    }
    out->sum = sum8(sum);
}

/* T queries against one range: `limits` say how many keys of it each may see; `out` are their results. */
INLINE void attend_tile(const int is_half, const int T, const int W, const uint8_t *const pages[], int64_t keys_at, int64_t values_at, int n_features, int width, const float *q, const int *limits, Partial *out) {
    _Alignas(32) float scores[MOST_T * RANGE];
    float *values[MOST_T];
    int most = 0;
    TOKENS {
        most = limits[t] > most ? limits[t] : most;
        values[t] = out[t].values;
    }
    int padded = (most + 8 * W - 1) / (8 * W) * (8 * W);
    for (int key = 0; key < padded; key += 8 * W)
        score_keys(is_half, T, W, pages[key / PAGE_KEYS] + keys_at, key % PAGE_KEYS, q, width, n_features, scores + key / PAGE_KEYS * PAGE_KEYS, RANGE);
    TOKENS soften(scores + t * RANGE, limits[t], padded, out + t);
    int feature = 0;
    for (; feature + 8 * W <= width; feature += 8 * W) mix_values(is_half, T, W, pages, values_at, width, feature, scores, RANGE, most, values);
    for (; feature < width; feature += 8) mix_values(is_half, T, 1, pages, values_at, width, feature, scores, RANGE, most, values);
}

/* Any number of queries, 6 at a time; with fewer, more keys at a time keep the processor's units busy. */
INLINE void attend_range(const int is_half, const uint8_t *const pages[], int64_t keys_at, int64_t values_at, int n_features, int width, const float *q, const int *limits, int n_queries, Partial *out) {
    for (int i = 0, some; i < n_queries; i += some) {
        const float *rows = q + (int64_t)i * width;
        some = n_queries - i < 6 ? n_queries - i : 6;
        if (some == 5) some = 3;
        switch (some) {
        case 1: attend_tile(is_half, 1, 8, pages, keys_at, values_at, n_features, width, rows, limits + i, out + i); break;
        case 2: attend_tile(is_half, 2, 4, pages, keys_at, values_at, n_features, width, rows, limits + i, out + i); break;
        case 3: attend_tile(is_half, 3, 4, pages, keys_at, values_at, n_features, width, rows, limits + i, out + i); break;
        case 4: attend_tile(is_half, 4, 2, pages, keys_at, values_at, n_features, width, rows, limits + i, out + i); break;
        default: attend_tile(is_half, 6, 2, pages, keys_at, values_at, n_features, width, rows, limits + i, out + i);
        }
    }
}

/* The results of what is left of a range and of the range itself as one, in `left`. */
static void join(Partial *left, const Partial *right, int width) {
    float most = left->largest > right->largest ? left->largest : right->largest;
    float keep = expf(left->largest - most), add = expf(right->largest - most);
    left->largest = most;
    left->sum = left->sum * keep + right->sum * add;
    for (int e = 0; e < width; e += 8)
        store8(left->values + e, fma8(load8(left->values + e), all8(keep), load8(right->values + e) * all8(add)));
}

#endif
