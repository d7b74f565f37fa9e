/* What a product reads: rows of floats, one for each token, and the same rows as int8 in groups of 32.
 *
 *     x ≈ d q,  d = max |x| / 127 of the group,  q = x / d to the nearest whole number
 *
 * Weights with an offset or a minimum also need the sum of a group: Σ w x = d_w d Σ q_w q + m_w d Σ q.
 * Included by each compilation for one kind of processor (paths.h). */
#ifndef LAMOID_ROWS_H
#define LAMOID_ROWS_H

#include "panels.h"
#include "simd.h"

/* n_cols is rounded up to a multiple of 32 in the strides; what is behind the last column is zero. */
typedef struct {
    int n_cols, stride;
    float *x;       /* (tokens, stride) */
    int8_t *q;      /* (tokens, stride) */
    float *d;       /* (tokens, stride / 32) */
    float *d_sum;   /* (tokens, stride / 32): d Σ q */
    int32_t *sum;   /* (tokens, stride / 32): Σ q */
    int32_t *halves; /* (tokens, stride / 32, 2): Σ q of the first and of the last 16 */
} Rows;

/* x / sqrt(mean(x²) + ε) · g */
INLINE void rms_norm(const float *x, const float *gain, int n, float epsilon, float *y) {
    f8 squares = zero8();
    int whole = n / 8 * 8;
    for (int i = 0; i < whole; i += 8) squares = fma8(load8(x + i), load8(x + i), squares);
    f8 rest = load_some8(x + whole, n - whole);
    float mean = sum8(fma8(rest, rest, squares)) / (float)n;
    float factor = 1.0f / sqrtf(mean + epsilon);
    for (int i = 0; i < whole; i += 8) store8(y + i, load8(x + i) * all8(factor) * load8(gain + i));
    for (int i = whole; i < n; i++) y[i] = x[i] * factor * gain[i];
}

INLINE void quantize_group(const float *x, int8_t *q, float *d, float *d_sum, int32_t *sum, int32_t *halves) {
    f8 a = load8(x), b = load8(x + 8), c = load8(x + 16), e = load8(x + 24);
    float most = largest8(max8(max8(abs8(a), abs8(b)), max8(abs8(c), abs8(e))));
    float inverse = most > 0.0f ? 127.0f / most : 0.0f;
#if defined(LAMOID_AVX2)
    __m256 factor = _mm256_set1_ps(inverse);
    __m256i ia = _mm256_cvtps_epi32(a * factor), ib = _mm256_cvtps_epi32(b * factor);
    __m256i ic = _mm256_cvtps_epi32(c * factor), ie = _mm256_cvtps_epi32(e * factor);
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(ia, ib), _mm256_packs_epi32(ic, ie));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, bytes);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m256i eights = _mm256_hadd_epi32(fours, fours);
    __m256i sixteens = _mm256_hadd_epi32(eights, eights);
    halves[0] = _mm256_extract_epi32(sixteens, 0);
    halves[1] = _mm256_extract_epi32(sixteens, 4);
#else
    halves[0] = halves[1] = 0;
    for (int i = 0; i < 32; i++) {
        float scaled = nearbyintf(x[i] * inverse);
        q[i] = (int8_t)(scaled > 127.0f ? 127.0f : scaled > -127.0f ? scaled : -127.0f); /* NaN too becomes -127 */
        halves[i / 16] += q[i];
    }
#endif
    *sum = halves[0] + halves[1];
    *d = most / 127.0f;
    *d_sum = *d * (float)*sum;
}

/* The int8 form of one token's row, whose floats are there. */
static void quantize_row(Rows *rows, int token) {
    int groups = rows->stride / GROUP;
    float *x = rows->x + (int64_t)token * rows->stride;
    memset(x + rows->n_cols, 0, 4 * (size_t)(rows->stride - rows->n_cols));
    int64_t at = (int64_t)token * groups;
    for (int g = 0; g < groups; g++, at++)
        quantize_group(x + 32 * g, rows->q + 32 * at, rows->d + at, rows->d_sum + at, rows->sum + at, rows->halves + 2 * at);
}

#endif
