/* Eight floats at once. With AVX2 these are the processor's own instructions, without it loops that a compiler unrolls.
 * Nothing here lets the compiler choose whether a product and a sum are fused, so a result does not depend on which
 * loop it was computed in. */
#ifndef LAMOID_SIMD_H
#define LAMOID_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(LAMOID_AVX2)
#include <immintrin.h>

typedef __m256 f8;

INLINE f8 load8(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store8(float *p, f8 x) { _mm256_storeu_ps(p, x); }
INLINE f8 all8(float x) { return _mm256_set1_ps(x); }
INLINE f8 fma8(f8 a, f8 b, f8 c) { return _mm256_fmadd_ps(a, b, c); } /* a b + c */
INLINE f8 max8(f8 a, f8 b) { return _mm256_max_ps(a, b); }
INLINE f8 min8(f8 a, f8 b) { return _mm256_min_ps(a, b); }
INLINE f8 abs8(f8 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
INLINE f8 load_half8(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store_half8(uint16_t *p, f8 x) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, 0)); }
INLINE f8 load_bfloat8(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE f8 round8(f8 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE f8 power_of_two8(f8 n) { /* 2^n for whole n from -127 (which gives 0) to 127 */
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

#else

typedef float f8 __attribute__((vector_size(32)));
#define LANES for (int lane = 0; lane < 8; lane++)

INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023, bits;
    float value;
    if (exponent == 0) { /* below 2^-14: mantissa · 2^-24 */
        value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE uint16_t float_to_half(float x) { /* to the nearest, halves to the even one */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        float value;
        memcpy(&value, &magnitude, 4);
        return (uint16_t)(sign | (uint32_t)nearbyintf(value * 0x1p24f));
    }
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

INLINE f8 load8(const float *p) { f8 x; memcpy(&x, p, 32); return x; }
INLINE void store8(float *p, f8 x) { memcpy(p, &x, 32); }
INLINE f8 all8(float x) { return (f8){x, x, x, x, x, x, x, x}; }
INLINE f8 fma8(f8 a, f8 b, f8 c) { return a * b + c; }
INLINE f8 max8(f8 a, f8 b) { f8 y; LANES y[lane] = a[lane] > b[lane] ? a[lane] : b[lane]; return y; }
INLINE f8 min8(f8 a, f8 b) { f8 y; LANES y[lane] = a[lane] < b[lane] ? a[lane] : b[lane]; return y; }
INLINE f8 abs8(f8 x) { f8 y; LANES y[lane] = fabsf(x[lane]); return y; }
INLINE f8 load_half8(const uint16_t *p) { f8 y; LANES y[lane] = half_to_float(p[lane]); return y; }
INLINE void store_half8(uint16_t *p, f8 x) { LANES p[lane] = float_to_half(x[lane]); }
INLINE f8 load_bfloat8(const uint16_t *p) {
    f8 y;
    LANES {
        uint32_t bits = (uint32_t)p[lane] << 16;
        float value;
        memcpy(&value, &bits, 4);
        y[lane] = value;
    }
    return y;
}
INLINE f8 round8(f8 x) { f8 y; LANES y[lane] = nearbyintf(x[lane]); return y; }
INLINE f8 power_of_two8(f8 n) {
    f8 y;
    LANES {
        uint32_t bits = (uint32_t)((int)n[lane] + 127) << 23;
        float value;
        memcpy(&value, &bits, 4);
        y[lane] = value;
    }
    return y;
}

#endif

INLINE f8 zero8(void) { return all8(0.0f); }

/* ((x0 + x4) + (x2 + x6)) + ((x1 + x5) + (x3 + x7)) */
INLINE float sum8(f8 x) {
    float v[8];
    store8(v, x);
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE float largest8(f8 x) {
    float v[8], most;
    store8(v, x);
    most = v[0];
    for (int i = 1; i < 8; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* The first n numbers at p, the rest zeros. */
INLINE f8 load_some8(const float *p, int n) {
    float v[8] = {0};
    memcpy(v, p, 4 * (size_t)n);
    return load8(v);
}

/* e^x for x ≤ 88, to 2 units in the last place; 0 below -87, something small for NaN. x = n ln 2 + r, e^r by a polynomial of degree 6 (Cephes). */
INLINE f8 exp8(f8 x) {
    f8 low = all8(-87.33654f), limited = min8(max8(x, low), all8(88.0f));
    f8 n = round8(limited * all8(1.44269504f));
    f8 r = fma8(n, all8(-0.693359375f), limited);
    r = fma8(n, all8(2.12194440e-4f), r);
    f8 y = all8(1.9875691500e-4f);
    y = fma8(y, r, all8(1.3981999507e-3f));
    y = fma8(y, r, all8(8.3334519073e-3f));
    y = fma8(y, r, all8(4.1665795894e-2f));
    y = fma8(y, r, all8(1.6666665459e-1f));
    y = fma8(y, r, all8(5.0000001201e-1f));
    y = fma8(y * r, r, r + all8(1.0f));
    y = y * power_of_two8(n);
#if defined(LAMOID_AVX2)
    return _mm256_and_ps(y, _mm256_cmp_ps(x, low, _CMP_NLT_UQ));
#else
    LANES y[lane] = x[lane] < low[lane] ? 0.0f : y[lane];
    return y;
#endif
}

#endif
