/* The engine's inner loops for processors with AVX-512's VNNI, of which the vectors of 32 bytes are used (Intel's servers since 2019, AMD since 2022). */
#include "paths.h"
#if defined(KNOWS_AVX2)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni")
#endif
#define LAMOID_AVX2
#define LAMOID_VNNI _mm256_dpbusd_epi32
#include "forward.h"

void run_step_avx512vnni(void *step, int thread) { run_step(step, thread); }
void run_product_avx512vnni(void *product, int thread) { run_product(product, thread); }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
