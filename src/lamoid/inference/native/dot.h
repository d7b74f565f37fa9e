/* Products of 8 rows of weights with the rows of up to 4 tokens: the inner loops of every product.
 *
 * Every sum has one order, whatever the number of tokens and threads: over the blocks of a quantized row from left to
 * right, exactly (in integers) within a group; over 8 lanes of a plain row, column k in lane k mod 8. So a sequence gets the same
 * bits in a batch, in a prompt and alone. */
#ifndef LAMOID_DOT_H
#define LAMOID_DOT_H

#include "engine.h"
#include "rows.h"

enum { TILE = 4 }; /* tokens that share one look at the weights */

#define TOKENS _Pragma("GCC unroll 6") for (int t = 0; t < T; t++)
#define UNROLL _Pragma("GCC unroll 8")

/* ---- Quantized panels. `out` is (tokens, stride): 8 numbers for each token. ---- */

#if defined(LAMOID_AVX2)

/* 8 whole numbers at once: for each row the sum over the group so far. */
typedef __m256i i8;

/* Finish this sum before the next product begins: compilers like to make many products first and run out of registers. */
#define IN_ORDER(x) __asm__("" : "+x"(x))

INLINE i8 load_words(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE i8 word_of(const int8_t *q) { /* 4 columns of a token, for all 8 rows */
    int32_t word;
    memcpy(&word, q, 4);
    return _mm256_set1_epi32(word);
}
/* x − y 2^bits */
INLINE i8 take_away(i8 x, int32_t y, int bits) { return _mm256_sub_epi32(x, _mm256_slli_epi32(_mm256_set1_epi32(y), bits)); }
INLINE i8 low_half(i8 x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE i8 high_half(i8 x) { return low_half(_mm256_srli_epi16(x, 4)); }
INLINE i8 add_pairs(i8 x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
INLINE f8 scales_of(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE f8 unsigned_bytes(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* ---- Sums of products of bytes, exact in each of the three ways, so that every processor gives the same bits. ---- */

#if defined(LAMOID_VNNI)

/* sum + the 4 products of unsigned u and signed s in each word, in one instruction. */
INLINE i8 add_products(i8 sum, i8 u, i8 s) { return LAMOID_VNNI(sum, u, s); }

/* The instruction takes one unsigned side: w + 128, hence 128 Σ x is taken off beforehand. */
INLINE void group_q8_0(const uint8_t *words, const int8_t *const q[], const int32_t *const sums[], i8 sum[], const int T) {
    TOKENS sum[t] = take_away(_mm256_setzero_si256(), *sums[t], 7);
    UNROLL for (int j = 0; j < 8; j++) {
        i8 w = _mm256_xor_si256(load_words(words + 32 * j), _mm256_set1_epi8(-128));
        TOKENS sum[t] = add_products(sum[t], w, word_of(q[t] + 4 * j));
    }
}

INLINE void group_q4(const uint8_t *words, const int8_t *const q[], i8 sum[], const int T) {
    TOKENS sum[t] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 4; j++) {
        i8 w = load_words(words + 32 * j), low = low_half(w), high = high_half(w);
        TOKENS sum[t] = add_products(add_products(sum[t], low, word_of(q[t] + 4 * j)), high, word_of(q[t] + 16 + 4 * j));
    }
}

#else

INLINE i8 add_products(i8 sum, i8 u, i8 s) { return _mm256_add_epi32(sum, add_pairs(_mm256_maddubs_epi16(u, s))); }

/* |w| as unsigned and x with the sign of w, since the instruction takes one of each: 2 · 128 · 127 fits into 16 bits. */
INLINE void group_q8_0(const uint8_t *words, const int8_t *const q[], const int32_t *const sums[], i8 sum[], const int T) {
    (void)sums;
    TOKENS sum[t] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 8; j++) {
        i8 w = load_words(words + 32 * j), size = _mm256_abs_epi8(w);
        TOKENS {
            sum[t] = add_products(sum[t], size, _mm256_sign_epi8(word_of(q[t] + 4 * j), w));
            IN_ORDER(sum[t]);
        }
    }
}

/* Unsigned four bits: 16 products of at most 15 · 127 are added in 16 bits before they are widened. */
INLINE void group_q4(const uint8_t *words, const int8_t *const q[], i8 sum[], const int T) {
    TOKENS sum[t] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 4; j++) {
        i8 w = load_words(words + 32 * j), low = low_half(w), high = high_half(w);
        TOKENS {
            i8 first = _mm256_maddubs_epi16(low, word_of(q[t] + 4 * j));
            i8 last = _mm256_maddubs_epi16(high, word_of(q[t] + 16 + 4 * j));
            sum[t] = _mm256_add_epi16(sum[t], _mm256_add_epi16(first, last));
            IN_ORDER(sum[t]);
        }
    }
    TOKENS sum[t] = add_pairs(sum[t]);
}

#endif

INLINE void group_q5_0(const uint8_t *words, const int8_t *const q[], i8 sum[], const int T) {
    i8 fifth = load_words(words + 128), bit = _mm256_set1_epi8(16);
    TOKENS sum[t] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 4; j++) {
        i8 w = load_words(words + 32 * j);
        i8 low = _mm256_or_si256(low_half(w), _mm256_and_si256(_mm256_slli_epi16(fifth, 4 - j), bit));
        i8 high = _mm256_or_si256(high_half(w), _mm256_and_si256(_mm256_srli_epi16(fifth, j), bit));
        TOKENS sum[t] = add_products(add_products(sum[t], low, word_of(q[t] + 4 * j)), high, word_of(q[t] + 16 + 4 * j));
    }
}

/* Σ s (q - 32) x for the 32 columns of a group, s one scale for each 16. */
INLINE void group_q6_k(const uint8_t *group, const int8_t *const q[], const int32_t *const halves[], i8 sum[], const int T) {
    i8 mask = _mm256_set1_epi8(48);
    TOKENS sum[t] = _mm256_setzero_si256();
    UNROLL for (int h = 0; h < 2; h++) {
        i8 upper = load_words(group + 144 + 32 * h), half[TILE];
        i8 scale = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(group + 8 * h)));
        TOKENS half[t] = _mm256_slli_epi32(_mm256_set1_epi32(-halves[t][h]), 5);
        UNROLL for (int u = 0; u < 4; u++) {
            i8 low = load_words(group + 16 + 32 * u), two = u < 2 ? _mm256_slli_epi16(upper, 4 - 2 * u) : _mm256_srli_epi16(upper, 2 * u - 4);
            i8 w = _mm256_or_si256(h ? high_half(low) : low_half(low), _mm256_and_si256(two, mask));
            TOKENS half[t] = add_products(half[t], w, word_of(q[t] + 16 * h + 4 * u));
        }
        TOKENS sum[t] = _mm256_add_epi32(sum[t], _mm256_mullo_epi32(half[t], scale));
    }
}

INLINE f8 to_floats(i8 x) { return _mm256_cvtepi32_ps(x); }
INLINE void look_ahead(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }

#else

typedef int32_t i8 __attribute__((vector_size(32)));
#define EACH_ROW for (int row = 0; row < 8; row++)

INLINE f8 scales_of(const uint8_t *p) {
    uint16_t halves[8];
    memcpy(halves, p, 16);
    return load_half8(halves);
}
INLINE f8 unsigned_bytes(const uint8_t *p) { f8 y; EACH_ROW y[row] = (float)p[row]; return y; }

INLINE void group_q8_0(const uint8_t *words, const int8_t *const q[], const int32_t *const sums[], i8 sum[], const int T) {
    (void)sums;
    TOKENS EACH_ROW {
        int32_t s = 0;
        for (int c = 0; c < 32; c++) s += (int8_t)words[c / 4 * 32 + 4 * row + c % 4] * q[t][c];
        sum[t][row] = s;
    }
}
INLINE int half_byte(const uint8_t *words, int row, int c) {
    return words[c % 16 / 4 * 32 + 4 * row + c % 4] >> (c < 16 ? 0 : 4) & 15;
}
INLINE void group_q4(const uint8_t *words, const int8_t *const q[], i8 sum[], const int T) {
    TOKENS EACH_ROW {
        int32_t s = 0;
        for (int c = 0; c < 32; c++) s += half_byte(words, row, c) * q[t][c];
        sum[t][row] = s;
    }
}
INLINE void group_q5_0(const uint8_t *words, const int8_t *const q[], i8 sum[], const int T) {
    TOKENS EACH_ROW {
        int32_t s = 0;
        for (int c = 0; c < 32; c++)
            s += (half_byte(words, row, c) | (words[128 + 4 * row + c % 4] >> c / 4 & 1) << 4) * q[t][c];
        sum[t][row] = s;
    }
}
INLINE void group_q6_k(const uint8_t *group, const int8_t *const q[], const int32_t *const halves[], i8 sum[], const int T) {
    (void)halves;
    TOKENS EACH_ROW {
        int32_t s[2] = {0, 0};
        for (int c = 0; c < 32; c++) {
            int upper = group[144 + c / 16 * 32 + 4 * row + c % 4] >> c % 16 / 4 * 2 & 3;
            s[c / 16] += ((half_byte(group + 16, row, c) | upper << 4) - 32) * q[t][c];
        }
        sum[t][row] = s[0] * (int8_t)group[row] + s[1] * (int8_t)group[8 + row];
    }
}
INLINE f8 to_floats(i8 x) { f8 y; EACH_ROW y[row] = (float)x[row]; return y; }
INLINE i8 take_away(i8 x, int32_t y, int bits) { return x - y * (1 << bits); }
INLINE void look_ahead(const uint8_t *p) { __builtin_prefetch(p); }

#endif

enum { AHEAD = 2048 }; /* bytes; the hardware's own reading ahead ends at each page */

/* One panel against T tokens; `format` and T are constants where this is called, so each case becomes a loop of its own. */
INLINE void quantized_tile(const int format, const uint8_t *panel, const Rows *x, int token, const int T, float *out, int stride) {
    const int8_t *q[TILE];
    const float *d[TILE], *d_sum[TILE];
    const int32_t *sums[TILE], *halves[TILE];
    f8 total[TILE];
    i8 sum[TILE];
    int groups = x->stride / GROUP, n_groups = x->n_cols / GROUP, in_block = 256 / GROUP;
    TOKENS {
        int64_t at = (int64_t)(token + t) * groups;
        q[t] = x->q + 32 * at, d[t] = x->d + at, d_sum[t] = x->d_sum + at, sums[t] = x->sum + at, halves[t] = x->halves + 2 * at;
        total[t] = zero8();
    }
    f8 scale = zero8(), minimum = zero8();
    const uint8_t *p = panel;
    for (int g = 0; g < n_groups; g++) {
        if (token == 0)
            for (int line = 0; line < (format == Q8_0 ? 272 : 160); line += 64) look_ahead(p + AHEAD + line);
        if (format == Q4_K || format == Q6_K) {
            if (g % in_block == 0) {
                scale = scales_of(p);
                if (format == Q4_K) minimum = scales_of(p + 16);
                p += format == Q4_K ? 32 : 16;
            }
        } else {
            scale = scales_of(p);
            if (format == Q4_1) minimum = scales_of(p + 16);
            p += format == Q4_1 ? 32 : 16;
        }
        f8 group_scale = scale, group_minimum = minimum;
        switch (format) {
        case Q8_0: group_q8_0(p, q, sums, sum, T); p += 256; break;
        case Q4_0: group_q4(p, q, sum, T); p += 128; break;
        case Q4_1: group_q4(p, q, sum, T); p += 128; break;
        case Q5_0: group_q5_0(p, q, sum, T); p += 160; break;
        case Q4_K:
            group_q4(p + 16, q, sum, T);
            group_scale = scale * unsigned_bytes(p);
            group_minimum = zero8() - minimum * unsigned_bytes(p + 8);
            p += 144;
            break;
        default: group_q6_k(p, q, halves, sum, T); p += 208; /* Q6_K */
        }
        TOKENS {
            if (format == Q4_0) sum[t] = take_away(sum[t], *sums[t], 3);
            if (format == Q5_0) sum[t] = take_away(sum[t], *sums[t], 4);
            total[t] = fma8(to_floats(sum[t]), group_scale * all8(d[t][g]), total[t]);
            if (format == Q4_1 || format == Q4_K) total[t] = fma8(group_minimum, all8(d_sum[t][g]), total[t]);
            q[t] += 32;
            sums[t]++;
            halves[t] += 2;
        }
    }
    TOKENS store8(out + (int64_t)t * stride, total[t]);
}

/* ---- Panels of plain numbers: 8 columns of row 0, the same columns of row 1, …, of row 7, then the next 8 columns. ---- */

INLINE f8 load_weights(const int format, const uint8_t *panel, int64_t at) {
    if (format == F32) return load8((const float *)panel + at);
    return format == F16 ? load_half8((const uint16_t *)panel + at) : load_bfloat8((const uint16_t *)panel + at);
}

/* Rows first … first + R - 1 of a panel against T tokens. */
INLINE void plain_tile(const int format, const uint8_t *panel, int first, const int R, const Rows *x, int token, const int T, float *out, int stride) {
    f8 total[8][TILE];
    const float *columns[TILE];
    int n = x->n_cols, whole = n / 8 * 8;
    TOKENS columns[t] = x->x + (int64_t)(token + t) * x->stride;
    for (int r = 0; r < R; r++) TOKENS total[r][t] = zero8();
    for (int k = 0; k < n; k += 8) {
        f8 b[TILE];
        TOKENS b[t] = k < whole ? load8(columns[t] + k) : load_some8(columns[t] + k, n - k);
        if (token == 0)
            for (int line = 0; line < (format == F32 ? 256 : 128); line += 64) look_ahead(panel + (int64_t)k * (format == F32 ? 32 : 16) + AHEAD + line);
        UNROLL for (int r = 0; r < R; r++) {
            f8 a = load_weights(format, panel, (int64_t)k * PANEL + 8 * (first + r));
            TOKENS total[r][t] = fma8(a, b[t], total[r][t]);
        }
    }
    for (int r = 0; r < R; r++) TOKENS out[(int64_t)t * stride + first + r] = sum8(total[r][t]);
}

INLINE void plain_panel(const int format, const uint8_t *panel, const Rows *x, int n_tokens, float *out, int stride) {
    int token = 0;
    for (; token + 3 <= n_tokens; token += 3)
        for (int half = 0; half < 8; half += 4) plain_tile(format, panel, half, 4, x, token, 3, out + (int64_t)token * stride, stride);
    for (; token < n_tokens; token++) plain_tile(format, panel, 0, 8, x, token, 1, out + (int64_t)token * stride, stride);
}

INLINE void quantized_panel(const int format, const uint8_t *panel, const Rows *x, int n_tokens, float *out, int stride) {
    int token = 0;
    for (; token + 4 <= n_tokens; token += 4) quantized_tile(format, panel, x, token, 4, out + (int64_t)token * stride, stride);
    out += (int64_t)token * stride;
    switch (n_tokens - token) {
    case 3: quantized_tile(format, panel, x, token, 3, out, stride); break;
    case 2: quantized_tile(format, panel, x, token, 2, out, stride); break;
    case 1: quantized_tile(format, panel, x, token, 1, out, stride); break;
    default: break;
    }
}

/* Rows 8 p … 8 p + 7 of a matrix against all tokens: `out` is (n_tokens, stride), written at column 8 p. */
static void multiply_panel(const Matrix *m, int p, const Rows *x, int n_tokens, float *out, int stride) {
    const uint8_t *panel = (const uint8_t *)m->data + p * panel_bytes(m->format, m->n_cols);
    out += 8 * p;
    switch (m->format) {
    case F32: plain_panel(F32, panel, x, n_tokens, out, stride); break;
    case F16: plain_panel(F16, panel, x, n_tokens, out, stride); break;
    case BF16: plain_panel(BF16, panel, x, n_tokens, out, stride); break;
    case Q8_0: quantized_panel(Q8_0, panel, x, n_tokens, out, stride); break;
    case Q4_0: quantized_panel(Q4_0, panel, x, n_tokens, out, stride); break;
    case Q4_1: quantized_panel(Q4_1, panel, x, n_tokens, out, stride); break;
    case Q5_0: quantized_panel(Q5_0, panel, x, n_tokens, out, stride); break;
    case Q4_K: quantized_panel(Q4_K, panel, x, n_tokens, out, stride); break;
    default: quantized_panel(Q6_K, panel, x, n_tokens, out, stride);
    }
    if (m->bias == NULL) return;
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < 8 && 8 * p + r < m->n_rows; r++) out[(int64_t)t * stride + r] += m->bias[8 * p + r];
}

#endif
