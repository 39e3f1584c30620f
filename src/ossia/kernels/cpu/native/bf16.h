/* Shared code of bfloat16 products: VDPBF16PS multiplies pairs of neighbours along the sum and adds them in float32.
 *
 * The second operand is stored as rows of pairs: [steps / 2][columns][2]. */
#ifndef OSSIA_BF16_H
#define OSSIA_BF16_H

#include "mxfp4.h"

#ifdef X86
/* A tile of sums has TALL rows and WIDE columns. */
enum { WIDE = 64, LANES = 16, LINES = WIDE / LANES, TALL = 4, PAIR = 2 * WIDE };

INLINE __m512i row_words(const uint16_t *row, int word) {
    return row ? _mm512_loadu_si512(row + 2 * word) : _mm512_setzero_si512();
}

/* Write the transpose of 16 rows of 16 words, one row every `stride` values. A row of NULL counts as zeros. */
INLINE void transpose(const uint16_t *const *rows, int word, uint16_t *out, int64_t stride) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int n = 0; n < 16; n++) a[n] = row_words(rows[n], word);
#pragma GCC unroll 8
    for (int n = 0; n < 16; n += 2) {
        b[n] = _mm512_unpacklo_epi32(a[n], a[n + 1]);
        b[n + 1] = _mm512_unpackhi_epi32(a[n], a[n + 1]);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 16; n += 4) {
        a[n] = _mm512_unpacklo_epi64(b[n], b[n + 2]);
        a[n + 1] = _mm512_unpackhi_epi64(b[n], b[n + 2]);
        a[n + 2] = _mm512_unpacklo_epi64(b[n + 1], b[n + 3]);
        a[n + 3] = _mm512_unpackhi_epi64(b[n + 1], b[n + 3]);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 4; n++) { /* a[n], a[4 + n], ...: words n, 4 + n, 8 + n, 12 + n of four rows each */
        const __m512i low = _mm512_shuffle_i32x4(a[n], a[4 + n], 0x88), high = _mm512_shuffle_i32x4(a[n], a[4 + n], 0xDD);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + n], a[12 + n], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(a[8 + n], a[12 + n], 0xDD);
        _mm512_storeu_si512(out + n * stride, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(out + (8 + n) * stride, _mm512_shuffle_i32x4(low, low2, 0xDD));
        _mm512_storeu_si512(out + (4 + n) * stride, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(out + (12 + n) * stride, _mm512_shuffle_i32x4(high, high2, 0xDD));
    }
}

/* Write 64 values of each of two rows as a row of pairs. NULL counts as zeros. */
INLINE void pair_up(const uint16_t *first, const uint16_t *second, uint16_t *out) {
#pragma GCC unroll 4
    for (int n = 0; n < WIDE; n += LANES) {
        const __m512i zero = _mm512_setzero_si512();
        const __m512i a = first ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(first + n))) : zero;
        const __m512i b = second ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(second + n))) : zero;
        _mm512_storeu_si512(out + 2 * n, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}

/* sum [TALL][64] += a [TALL][2 * pairs] times b, which is rows of pairs of 64 columns. Strides of `a` count values. */
INLINE void multiply(const uint16_t *a, int64_t row_stride, int64_t pair_stride, const uint16_t *b, int64_t pairs,
                     __m512 sum[TALL][LINES]) {
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh lines[LINES];
#pragma GCC unroll 4
        for (int n = 0; n < LINES; n++) lines[n] = (__m512bh)_mm512_loadu_si512(b + pair * PAIR + n * 2 * LANES);
#pragma GCC unroll 4
        for (int row = 0; row < TALL; row++) {
            int32_t two;
            memcpy(&two, a + row * row_stride + pair * pair_stride, 4);
            const __m512bh value = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (int n = 0; n < LINES; n++) sum[row][n] = _mm512_dpbf16_ps(sum[row][n], value, lines[n]);
        }
    }
}

INLINE void zero(__m512 sum[TALL][LINES]) {
#pragma GCC unroll 4
    for (int row = 0; row < TALL; row++)
#pragma GCC unroll 4
        for (int n = 0; n < LINES; n++) sum[row][n] = _mm512_setzero_ps();
}
#endif

#endif
