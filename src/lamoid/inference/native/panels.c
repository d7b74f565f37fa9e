/* From rows as they lie in a file to panels of 8 rows; panels.h has the layouts. */
#include "panels.h"

#include <string.h>

int is_quantized(int format) { return format != F32 && format != F16 && format != BF16; }

static int block_columns(int format) { return format == Q4_K || format == Q6_K ? 256 : 32; }

static int plain_bytes(int format) { return format == F32 ? 4 : 2; }

static int file_block_bytes(int format) {
    switch (format) {
    case Q8_0: return 34;
    case Q4_0: return 18;
    case Q4_1: return 20;
    case Q5_0: return 22;
    case Q4_K: return 144;
    default: return 210; /* Q6_K */
    }
}

static int panel_block_bytes(int format) {
    switch (format) {
    case Q8_0: return 16 + 256;
    case Q4_0: return 16 + 128;
    case Q4_1: return 32 + 128;
    case Q5_0: return 16 + 128 + 32;
    case Q4_K: return 32 + 8 * (16 + 128);
    default: return 16 + 8 * (16 + 128 + 64); /* Q6_K */
    }
}

int64_t row_bytes(int format, int n_cols) {
    if (!is_quantized(format)) return (int64_t)n_cols * plain_bytes(format);
    return (int64_t)(n_cols / block_columns(format)) * file_block_bytes(format);
}

int64_t panel_bytes(int format, int n_cols) {
    if (!is_quantized(format)) return (int64_t)(n_cols + 7) / 8 * 8 * PANEL * plain_bytes(format);
    return (int64_t)(n_cols / block_columns(format)) * panel_block_bytes(format);
}

/* n_words words of one row, which go to every eighth word of the panel. */
static void put_words(uint8_t *panel, int row, const uint8_t *words, int n_words) {
    for (int j = 0; j < n_words; j++) memcpy(panel + 32 * j + 4 * row, words + 4 * j, 4);
}

static void put_half(uint8_t *panel, int row, const uint8_t *half) { memcpy(panel + 2 * row, half, 2); }

static void pack_q5_0(const uint8_t *block, int row, uint8_t *panel) {
    uint32_t fifth;
    uint8_t high[4] = {0};
    memcpy(&fifth, block + 2, 4);
    for (int column = 0; column < 32; column++) high[column % 4] |= (uint8_t)((fifth >> column & 1) << column / 4);
    put_half(panel, row, block);
    put_words(panel + 16, row, block + 6, 4);
    put_words(panel + 144, row, high, 1);
}

/* The six-bit scales and minima of 8 groups are packed into 12 bytes; the file's 32 bytes hold two groups each. */
static void pack_q4_k(const uint8_t *block, int row, uint8_t *panel) {
    const uint8_t *p = block + 4, *q = block + 16;
    put_half(panel, row, block);
    put_half(panel + 16, row, block + 2);
    for (int g = 0; g < 8; g++) {
        uint8_t *group = panel + 32 + g * 144, nibbles[16];
        int i = g % 4;
        group[row] = g < 4 ? p[i] & 63 : (uint8_t)((p[8 + i] & 15) | (p[i] >> 6 << 4));
        group[8 + row] = g < 4 ? p[4 + i] & 63 : (uint8_t)((p[8 + i] >> 4) | (p[4 + i] >> 6 << 4));
        const uint8_t *from = q + g / 2 * 32;
        int shift = g % 2 * 4;
        for (int c = 0; c < 16; c++)
            nibbles[c] = (uint8_t)((from[c] >> shift & 15) | (from[16 + c] >> shift & 15) << 4);
        put_words(group + 16, row, nibbles, 4);
    }
}

/* 128 columns share 64 bytes of lower halves and 32 bytes of upper two bits. */
static void pack_q6_k(const uint8_t *block, int row, uint8_t *panel) {
    put_half(panel, row, block + 208);
    for (int g = 0; g < 8; g++) {
        uint8_t *group = panel + 16 + g * 208, nibbles[16], high[8] = {0};
        const uint8_t *low = block + g / 4 * 64 + g % 2 * 32, *upper = block + 128 + g / 4 * 32;
        int low_shift = g % 4 / 2 * 4, upper_shift = g % 4 * 2;
        group[row] = block[192 + 2 * g];
        group[8 + row] = block[192 + 2 * g + 1];
        for (int c = 0; c < 16; c++)
            nibbles[c] = (uint8_t)((low[c] >> low_shift & 15) | (low[16 + c] >> low_shift & 15) << 4);
        for (int c = 0; c < 32; c++)
            high[c / 16 * 4 + c % 4] |= (uint8_t)((upper[c] >> upper_shift & 3) << c % 16 / 4 * 2);
        put_words(group + 16, row, nibbles, 4);
        put_words(group + 144, row, high, 2);
    }
}

static void pack_block(int format, const uint8_t *block, int row, uint8_t *panel) {
    switch (format) {
    case Q8_0:
        put_half(panel, row, block);
        put_words(panel + 16, row, block + 2, 8);
        break;
    case Q4_0:
        put_half(panel, row, block);
        put_words(panel + 16, row, block + 2, 4);
        break;
    case Q4_1:
        put_half(panel, row, block);
        put_half(panel + 16, row, block + 2);
        put_words(panel + 32, row, block + 4, 4);
        break;
    case Q5_0: pack_q5_0(block, row, panel); break;
    case Q4_K: pack_q4_k(block, row, panel); break;
    default: pack_q6_k(block, row, panel);
    }
}

static void pack_plain(int size, const uint8_t *from, int row, int n_cols, uint8_t *panel) {
    for (int k = 0; k < n_cols; k += 8) {
        int some = n_cols - k < 8 ? n_cols - k : 8;
        memcpy(panel + (int64_t)(k * PANEL + 8 * row) * size, from + (int64_t)k * size, (size_t)(some * size));
    }
}

void pack_panel(int format, const uint8_t *rows, int n, int n_cols, uint8_t *panel) {
    int64_t apart = row_bytes(format, n_cols);
    if (n < PANEL || (!is_quantized(format) && n_cols % 8)) memset(panel, 0, (size_t)panel_bytes(format, n_cols));
    if (!is_quantized(format)) {
        for (int row = 0; row < n; row++) pack_plain(plain_bytes(format), rows + row * apart, row, n_cols, panel);
        return;
    }
    int n_blocks = n_cols / block_columns(format), from = file_block_bytes(format), to = panel_block_bytes(format);
    for (int b = 0; b < n_blocks; b++)
        for (int row = 0; row < n; row++)
            pack_block(format, rows + row * apart + (int64_t)b * from, row, panel + (int64_t)b * to);
}
