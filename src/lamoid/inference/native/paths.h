/* The ways to compute: forward.h compiled for one kind of processor or another, as far as the compiler knows them. */
#ifndef LAMOID_PATHS_H
#define LAMOID_PATHS_H

#if defined(__x86_64__) && defined(__GNUC__)
#define KNOWS_AVX2
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define KNOWS_AVXVNNI
#endif
#endif

#define DECLARE_PATH(name) \
    void run_step_##name(void *step, int thread); \
    void run_product_##name(void *product, int thread);

DECLARE_PATH(portable)
DECLARE_PATH(avx2)
DECLARE_PATH(avxvnni)
DECLARE_PATH(avx512vnni)

#endif
