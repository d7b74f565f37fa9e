/* Weights in panels of 8 rows, a panel being one stretch of memory. Quantized rows are interleaved, so that 8 rows meet a
 * number of x at once and the 8 scales are one vector; plain ones by 8 columns (see dot.h).
 *
 * A quantized panel is a run of blocks, each 32 (Q4_K, Q6_K: 256) columns wide. In what follows [8] is one value for each row, and a
 * word is the bytes of 4 neighbouring columns: words[8] of one column group are 32 bytes, one vector.
 *
 *     Q8_0  d[8], then for j = 0…7: words[8] of columns 4 j
 *     Q4_0  d[8], then for j = 0…3: words[8], lower halves of the bytes columns 4 j, upper halves 16 + 4 j
 *     Q4_1  d[8], m[8], then as Q4_0
 *     Q5_0  d[8], as Q4_0, then words[8]: bit j of byte i is the fifth bit of column 4 j + i
 *     Q4_K  d[8], dmin[8], then 8 groups of 32 columns: s[8], m[8] (a byte each), as Q4_0
 *     Q6_K  d[8], then 8 groups of 32 columns: s[8] of the first 16 and s[8] of the last 16 columns (a byte each), as
 *           Q4_0, then for h = 0, 1: words[8]: bits 2 u, 2 u + 1 of byte i are the upper two of column 16 h + 4 u + i
 *
 * d, m and dmin are float16 as in the file; what they mean stands in checkpoints/quants.py. */
#ifndef LAMOID_PANELS_H
#define LAMOID_PANELS_H

#include <stdint.h>

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q8_0 = 8, Q4_K = 12, Q6_K = 14, BF16 = 30 };
enum { PANEL = 8, GROUP = 32 };

int is_quantized(int format);
int64_t row_bytes(int format, int n_cols);   /* of one row, as in the file */
int64_t panel_bytes(int format, int n_cols); /* of 8 rows */

/* One panel of n (1 to 8) rows as they lie in a file; the others become zeros. */
void pack_panel(int format, const uint8_t *rows, int n, int n_cols, uint8_t *panel);

#endif
